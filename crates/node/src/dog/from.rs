//! `dog volume create --from`: a volume that has at once what lies elsewhere.

use super::{Context, Failure, arguments::Keeping, interrupt::Interrupt, print, snapshot};
use crate::{size::Size, source::Address};
use engine::admin::{AdminRequest, VolumeReport};
use std::path::{Path, absolute};

/// Makes the volume, and waits until it needs its source no more if that is wanted.
pub fn create(
    context: &Context,
    name: String,
    size: Option<Size>,
    from: &str,
    wait: bool,
    kept: Keeping,
) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    let from = address(from)?;
    let bytes = size.map(|size| size.0);
    // This waits for a daemon that is starting.
    context.ask(&AdminRequest::NodeInfo)?;
    let request = match kept.is_said() {
        true => super::volume::kept_creation(name, bytes, Some(from), kept),
        false => AdminRequest::VolumeCreateFrom { name, bytes, from },
    };
    let volume = context.ask_for_volume(&request)?;
    if wait {
        let volume = snapshot::wait_for_flatten(context, volume, &interrupt)?;
        let sentence = format!("volume {} has all of its source", volume.name);
        context.show_changed(&volume, &sentence)?;
    } else {
        context.show_changed(&volume, &created(&volume))?;
    }
    context.warn_of_overcommit()
}

fn created(volume: &VolumeReport) -> String {
    format!(
        "volume {name} of {} created; it can be used now, and is filled in the background: `dog \
         volume info {name}` shows how far it is",
        Size(volume.bytes),
        name = volume.name
    )
}

/// The daemon has another working directory, so a path is given to it whole.
fn address(from: &str) -> Result<String, Failure> {
    if from.is_empty() {
        return Err(Failure::usage("--from names nothing; give an NBD URI or a path"));
    }
    if from.contains("://") {
        return match Address::parse(from) {
            Ok(_) => Ok(from.to_string()),
            Err(reason) => Err(Failure::usage(format!("{from} cannot be a source: {reason}"))),
        };
    }
    let path = absolute(Path::new(from))
        .map_err(|error| Failure::failed(format!("cannot find {from}: {error}")))?;
    match path.into_os_string().into_string() {
        Ok(path) => Ok(path),
        Err(_) => Err(Failure::usage(format!("the path of {from} is not UTF-8; rename it"))),
    }
}

/// How fast it goes and how long that takes yet: ", 12.0 MiB/s, 5 min left".
pub fn speed_words(bytes_per_s: u64, left_bytes: u64) -> String {
    if bytes_per_s == 0 {
        return String::new();
    }
    let left = print::span(left_bytes / bytes_per_s);
    format!(", {}/s, {left} left", Size(bytes_per_s))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dog::failure::FailureKind;

    #[test]
    fn a_path_is_given_whole_and_a_uri_as_it_is() {
        assert_eq!(address("nbd://h/e").as_deref(), Ok("nbd://h/e"));
        assert_eq!(address("/a/b").as_deref(), Ok("/a/b"));
        let relative = address("image.raw").expect("a path");
        assert!(relative.starts_with('/') && relative.ends_with("/image.raw"), "{relative}");
        for wrong in ["", "nbds://h/e", "http://h/e", "nbd://h:x/e"] {
            let failure = address(wrong).expect_err(wrong);
            assert_eq!(failure.kind, FailureKind::Usage, "{failure}");
        }
    }

    #[test]
    fn time_left_is_told_once_the_pace_is_known() {
        assert_eq!(speed_words(0, 1 << 30), "");
        assert_eq!(speed_words(1 << 20, 90 << 20), ", 1.0 MiB/s, 1 min 30 s left");
    }
}
