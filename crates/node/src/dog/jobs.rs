//! The job set of `bench/jobs.fio`, read from that very file, so that `dog bench` and `fio` run the
//! same.

/// The file.
const JOBS: &str = include_str!("../../../../bench/jobs.fio");

/// What one job does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Its section's name.
    pub name: String,
    /// How many of 100 operations are reads.
    pub read_percent: u32,
    /// Anywhere, or one after the other.
    pub random: bool,
    /// Bytes of one operation.
    pub block: u32,
    /// Operations in flight.
    pub depth: usize,
    /// Each write is followed by a flush before the next.
    pub sync: bool,
    /// Over the whole volume once instead of for a time.
    pub once: bool,
}

/// The jobs, in the file's order.
pub fn jobs() -> Vec<Job> {
    parse(JOBS).expect("bench/jobs.fio is checked by a test")
}

/// Reads the part of fio's language that the file uses; anything else is an error.
fn parse(text: &str) -> Result<Vec<Job>, String> {
    let mut jobs: Vec<Job> = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(';') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            jobs.push(Job {
                name: name.to_string(),
                read_percent: 100,
                random: false,
                block: 4096,
                depth: 1,
                sync: false,
                once: false,
            });
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| format!("`{line}` has no value"))?;
        let job = jobs.last_mut().ok_or_else(|| format!("`{line}` is in no section"))?;
        set(job, key, value).ok_or_else(|| format!("`{line}` is not understood"))?;
    }
    Ok(jobs)
}

fn set(job: &mut Job, key: &str, value: &str) -> Option<()> {
    match key {
        "rw" => {
            job.random = value.starts_with("rand");
            job.read_percent = match value {
                "read" | "randread" => 100,
                "write" | "randwrite" => 0,
                "randrw" => 50,
                _ => return None,
            };
        }
        "rwmixread" => job.read_percent = value.parse().ok().filter(|percent| *percent <= 100)?,
        "bs" => {
            let bytes = value.parse::<crate::size::Size>().ok()?.0;
            job.block = u32::try_from(bytes).ok()?;
        }
        "iodepth" => job.depth = value.parse().ok()?,
        "fsync" | "fdatasync" => job.sync = value == "1",
        "time_based" => job.once = value == "0",
        "runtime" => {}
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_of_the_file_is_understood() {
        let jobs = parse(JOBS).expect("all lines");
        let job = |name: &str| jobs.iter().find(|job| job.name == name).expect(name).clone();
        assert_eq!(jobs.len(), 12);
        let fill = job("precond");
        assert!(fill.once && fill.read_percent == 0 && !fill.random && fill.block == 1 << 20);
        let random = job("rw-4k-q32");
        assert!(random.random && random.depth == 32 && random.read_percent == 0 && !random.sync);
        assert!(job("rw-4k-q1-fsync").sync && job("rw-4k-q1-fdatasync").sync);
        assert_eq!(job("mix70-4k-q32").read_percent, 70);
        assert_eq!(job("sr-1m-q8").read_percent, 100);
        assert_eq!(jobs.iter().filter(|job| job.once).count(), 1);
    }

    #[test]
    fn unknown_options_are_not_ignored() {
        for text in ["rw=read", "[a]\nrw=trim", "[a]\nbs=4x", "[a]\nnumjobs=2", "[a]\nsurplus"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
