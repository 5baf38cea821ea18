//! Who must have refused a configuration before the next may begin (decision 0008, rule 7).

use cluster::Member;
use proto::{DiskId, Incarnation, Mistake, planted};
use std::collections::BTreeMap;

/// What a disk said when it refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Said {
    pub(super) incarnation: Incarnation,
    /// What openings from this one on acknowledged is all there.
    pub(super) lossless_from: Incarnation,
}

/// Whether a disk that is listed as this member has all it acknowledged as such.
pub(super) fn is_lossless(member: &Member, said: &Said) -> bool {
    // Whoever answers in an opening before the listed one cannot speak for that.
    let lossless = said.lossless_from <= member.incarnation;
    (lossless || planted(Mistake::ReopenedIsEvidence)) && member.incarnation <= said.incarnation
}

/// Whether those members who refused are enough to settle by: those that have all they acknowledged
/// meet every write quorum, or a write quorum has lost power and all together meet every one.
/// With fewer, what they do not have may have been acknowledged by those who are missing.
pub(super) fn is_enough(members: &[Member], said: &BTreeMap<DiskId, Said>) -> bool {
    let quorum = members.len() / 2 + 1;
    let meeting = members.len() + 1 - quorum;
    let answers = || members.iter().filter_map(|member| Some((member, said.get(&member.disk)?)));
    let lossless = answers().filter(|(member, said)| is_lossless(member, said)).count();
    let lossy = answers().count() - lossless;
    lossless >= meeting || (lossy >= quorum && lossless + lossy >= meeting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_lost_power_count_only_if_they_are_a_write_quorum() {
        // Each member by a letter: unchanged, restarted, lost power, silent.
        let table = [
            ("u", true),
            ("r", true),
            ("p", true),
            (".", false),
            ("u.", true),
            ("r.", true),
            ("p.", false),
            ("up", true),
            ("pp", true),
            ("uu.", true),
            ("ur.", true),
            ("up.", false),
            ("rp.", false),
            ("pp.", true),
            ("u..", false),
            ("ppu", true),
            ("upr", true),
            ("uu..", true),
            ("up..", false),
            ("pp..", false),
            ("ppp.", true),
            ("uuu..", true),
            ("uup..", false),
            ("upp..", false),
            ("ppp..", true),
        ];
        for (members, wanted) in table {
            let mut said = BTreeMap::new();
            let mut listed = Vec::new();
            for (at, letter) in members.chars().enumerate() {
                let disk = DiskId(at as u128);
                listed.push(Member { disk, incarnation: Incarnation(5) });
                let (incarnation, lossless_from) = match letter {
                    'u' => (5, 2),
                    'r' => (7, 5),
                    'p' => (7, 6),
                    _ => continue,
                };
                let incarnation = Incarnation(incarnation);
                let lossless_from = Incarnation(lossless_from);
                said.insert(disk, Said { incarnation, lossless_from });
            }
            assert_eq!(is_enough(&listed, &said), wanted, "{members}");
        }
    }
}
