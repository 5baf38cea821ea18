//! What a machine takes for the time.

use proto::Time;

/// A monotonic clock that began at some moment and runs too fast or too slow.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What it shows at the beginning of the run, in nanoseconds.
    pub offset: u64,
    /// By how much it runs too fast, in millionths: at most 10,000 either way.
    pub drift: i64,
}

const MILLION: i128 = 1_000_000;

impl Clock {
    /// What it shows at a moment of the run.
    pub fn local(&self, now: Time) -> Time {
        let run = i128::from(now.0) * (MILLION + i128::from(self.drift)) / MILLION;
        Time(self.offset + run as u64)
    }

    /// The first moment of the run at which it shows this, or later.
    pub fn global(&self, local: Time) -> Time {
        if local.0 == u64::MAX {
            return local;
        }
        let run = i128::from(local.0.saturating_sub(self.offset)) * MILLION;
        let mut global = Time((run / (MILLION + i128::from(self.drift))) as u64);
        // Rounded down twice: at most a few nanoseconds are missing.
        while self.local(global) < local {
            global.0 += 1;
        }
        global
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_is_due_when_the_run_gets_there() {
        for drift in [-10_000, -7, 0, 3, 10_000] {
            let clock = Clock { offset: 77, drift };
            for at in [0, 1, 999_999, 1_000_000_007, 123_456_789_012] {
                let due = clock.local(Time(at));
                let found = clock.global(due);
                assert!(found <= Time(at) && clock.local(found) >= due, "{drift} {at}");
            }
        }
    }
}
