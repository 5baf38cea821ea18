//! The names of volumes that are being filled from an image. Until its last byte is on stable media
//! such a volume has a name that says so: whoever looks for the volume does not find half of it,
//! and what an import that was killed leaves behind is seen to be that. A volume that receives a
//! stream of changes keeps its name, for its snapshots are whole; a marker beside it says so.

use proto::{BLOCK_SIZE, limits::VOLUME_NAME_BYTES_MAX};

/// What the volume was before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// Nothing: it was made for the import.
    Nothing,
    /// A volume whose content is being replaced.
    Volume,
}

impl Before {
    /// What stands between the name it will have and a number that is drawn.
    fn mark(self) -> &'static str {
        match self {
            Before::Nothing => ".import-",
            Before::Volume => ".overwrite-",
        }
    }
}

/// The digits of that number.
const NUMBER_DIGITS: usize = 8;

/// What volume `name` is called until it is filled. A name that would become too long is cut.
pub fn name(name: &str, before: Before, number: u32) -> String {
    let mut head = VOLUME_NAME_BYTES_MAX - before.mark().len() - NUMBER_DIGITS;
    head = head.min(name.len());
    while !name.is_char_boundary(head) {
        head -= 1;
    }
    format!("{}{}{number:08x}", &name[..head], before.mark())
}

/// The name that a volume will have once it is filled, if its present one says that it is not.
pub fn target(name: &str) -> Option<(&str, Before)> {
    let (head, number) = name.split_at_checked(name.len().checked_sub(NUMBER_DIGITS)?)?;
    let is_digit = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    if !number.bytes().all(is_digit) {
        return None;
    }
    let found = |before: Before| Some((head.strip_suffix(before.mark())?, before));
    let (target, before) = found(Before::Nothing).or_else(|| found(Before::Volume))?;
    (!target.is_empty()).then_some((target, before))
}

/// Behind the name of a volume that receives changes: the name of its marker.
const CHANGES: &str = ".import";

/// What the volume beside `name` is called that remembers how far a stream of changes has come.
pub fn marker(name: &str) -> String {
    format!("{name}{CHANGES}")
}

/// The volume that receives changes, if one of this name and size is its marker: one block long,
/// as no volume of anybody else is likely to be.
pub fn marked(name: &str, bytes: u64) -> Option<&str> {
    let target = name.strip_suffix(CHANGES)?;
    (bytes == BLOCK_SIZE as u64 && !target.is_empty()).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_volumes_tell_what_they_will_be_called() {
        for before in [Before::Nothing, Before::Volume] {
            for text in ["debian", "a.import-00000001", "\u{e9}t\u{e9}", "x"] {
                let called = name(text, before, 0x1f);
                assert!(cluster::check_name(&called).is_ok(), "{called}");
                assert_eq!(target(&called), Some((text, before)));
            }
        }
        assert_eq!(name("debian", Before::Nothing, 0xab), "debian.import-000000ab");
    }

    #[test]
    fn the_longest_names_are_cut_between_characters() {
        for text in ["x".repeat(255), "\u{e9}".repeat(127), "\u{1f411}".repeat(63)] {
            let called = name(&text, Before::Volume, u32::MAX);
            assert!(cluster::check_name(&called).is_ok(), "{called}");
            let (target, _) = target(&called).expect("it says so");
            assert!(text.starts_with(target) && target.len() > 230, "{target}");
        }
    }

    #[test]
    fn a_marker_is_no_volume_that_is_being_filled_nor_the_other_way_round() {
        for text in ["debian", "debian.import", "debian.import-0000001f", "x"] {
            let marker = marker(text);
            assert_eq!((marked(&marker, 4096), target(&marker)), (Some(text), None));
            assert_eq!(marked(&marker, 1 << 20), None, "somebody's own volume");
            for before in [Before::Nothing, Before::Volume] {
                assert_eq!(marked(&name(text, before, 0x1f), 4096), None);
            }
        }
        assert_eq!((marked(".import", 4096), marked("debian", 4096)), (None, None));
    }

    #[test]
    fn other_names_say_nothing() {
        for text in
            ["", "debian", ".import-00000001", "a.import-1", "a.import-0000000G", "a-00000001"]
        {
            assert_eq!(target(text), None, "{text}");
        }
    }
}
