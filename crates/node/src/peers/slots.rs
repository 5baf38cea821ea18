//! One place for each connection, and how many there may be of those that nobody knows yet.

use super::stream::Stream;
use crate::join::Host;
use link::Greeter;
use proto::{
    Duration, NodeId, Time,
    limits::{
        NODES_MAX, PEER_GREETINGS_MAX, PEER_GREETINGS_PER_ADDRESS_MAX,
        PEER_GREETINGS_PER_ADDRESS_PER_S_MAX, PEER_GREETINGS_PER_S_MAX,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

/// One connection.
pub struct Slot {
    pub stream: Stream,
    /// Where its other end is.
    pub remote: SocketAddr,
    pub state: State,
    /// When something is to be done about it.
    pub deadline: Time,
    /// As what it counts among those that have not shown who they are, if it does.
    pub greeting: Option<Standing>,
}

/// How far it has come.
pub enum State {
    /// It is being made for a link.
    Dialling { peer: NodeId, connection: u64 },
    /// It was accepted, and has not said what it is for.
    Unknown,
    /// A node, by its certificate; its hello is awaited.
    Greeting(Box<Greeter>),
    /// A machine that wants to join.
    Joining(Box<Host>),
    /// A link has it.
    Open { peer: NodeId, connection: u64 },
    /// All was said, and the other side is given a moment to hear it.
    Closing,
}

/// Whether a node is known where a connection comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// One is: it has places of its own.
    Known,
    /// None is: all such share places and pace.
    Stranger,
}

/// One after the other, some of them at once.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// When all that came would have come at an even pace.
    even: Time,
}

impl Pace {
    /// Whether one more may come, where so many come in a second, all of them at once at most.
    fn admit(&mut self, now: Time, per_s: u64) -> bool {
        let next = self.even.max(now) + Duration::from_nanos(1_000_000_000 / per_s);
        let is_due = next.since(now) <= Duration::from_secs(1);
        if is_due {
            self.even = next;
        }
        is_due
    }
}

/// What comes from one address.
#[derive(Debug, Default)]
struct Origin {
    held: usize,
    pace: Pace,
}

/// Counts connections whose other side has not shown who it is: how many there are, and how often
/// they come. Those from where nodes are known do not wait behind strangers.
#[derive(Debug, Default)]
pub struct Greetings {
    /// Where nodes are, as is agreed.
    agreed: BTreeSet<IpAddr>,
    /// Where nodes came from.
    met: BTreeSet<IpAddr>,
    by_address: BTreeMap<IpAddr, Origin>,
    known: usize,
    strangers: usize,
    pace: Pace,
}

impl Greetings {
    /// Where nodes are, as is agreed.
    pub fn agree(&mut self, addresses: BTreeSet<IpAddr>) {
        self.agreed = addresses;
    }

    /// A node has come from there.
    pub fn meet(&mut self, address: IpAddr) {
        if self.met.len() < NODES_MAX {
            self.met.insert(address.to_canonical());
        }
    }

    /// Counts one more from this address. Why not, if there are too many.
    pub fn admit(&mut self, now: Time, address: IpAddr) -> Result<Standing, &'static str> {
        let address = address.to_canonical();
        let is_known = self.agreed.contains(&address) || self.met.contains(&address);
        let standing = if is_known { Standing::Known } else { Standing::Stranger };
        if *self.place(standing) >= PEER_GREETINGS_MAX {
            return Err("too many connections have not shown who they are");
        }
        self.by_address.retain(|_, origin| origin.held > 0 || origin.pace.even > now);
        let (held, mut pace) =
            self.by_address.get(&address).map_or_else(Default::default, |it| (it.held, it.pace));
        if held >= PEER_GREETINGS_PER_ADDRESS_MAX {
            return Err("too many connections of its address have not shown who they are");
        }
        if !pace.admit(now, PEER_GREETINGS_PER_ADDRESS_PER_S_MAX) {
            return Err("too many connections of its address came within a second");
        }
        if standing == Standing::Stranger && !self.pace.admit(now, PEER_GREETINGS_PER_S_MAX) {
            return Err("too many connections came within a second");
        }
        self.by_address.insert(address, Origin { held: held + 1, pace });
        *self.place(standing) += 1;
        Ok(standing)
    }

    /// One from this address has shown who it is, or is gone.
    pub fn release(&mut self, address: IpAddr, standing: Standing) {
        let origin = self.by_address.get_mut(&address.to_canonical());
        origin.expect("only admitted ones are told of").held -= 1;
        *self.place(standing) -= 1;
    }

    fn place(&mut self, standing: Standing) -> &mut usize {
        match standing {
            Standing::Known => &mut self.known,
            Standing::Stranger => &mut self.strangers,
        }
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.known + self.strangers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time(1_000_000_000);

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn one_address_cannot_take_the_place_of_all_others() {
        let mut greetings = Greetings::default();
        for _ in 0..PEER_GREETINGS_PER_ADDRESS_MAX {
            greetings.admit(NOW, address(1)).expect("below the cap");
        }
        assert!(greetings.admit(NOW, address(1)).is_err());
        for last in 2.. {
            if greetings.count() == PEER_GREETINGS_MAX {
                break;
            }
            greetings.admit(NOW, address(last)).expect("below the cap");
        }
        let later = NOW + Duration::from_secs(1);
        assert!(greetings.admit(later, address(255)).is_err());
        greetings.release(address(1), Standing::Stranger);
        greetings.admit(later, address(255)).expect("one is gone");
    }

    /// Those that go at once cost something too.
    #[test]
    fn who_comes_again_and_again_is_looked_at_so_often_and_no_more() {
        let mut greetings = Greetings::default();
        let mut admitted = BTreeMap::new();
        for ms in 0..10_000 {
            let now = NOW + Duration::from_millis(ms);
            for last in 1..10 {
                if let Ok(standing) = greetings.admit(now, address(last)) {
                    greetings.release(address(last), standing);
                    *admitted.entry(last).or_insert(0) += 1;
                }
            }
        }
        let all: u64 = admitted.values().sum();
        assert!((640..=11 * PEER_GREETINGS_PER_S_MAX).contains(&all), "{admitted:?}");
        let most = 11 * PEER_GREETINGS_PER_ADDRESS_PER_S_MAX;
        assert!(admitted.values().all(|count| *count <= most), "{admitted:?}");
        assert!(greetings.by_address.len() <= 9);
        greetings.admit(NOW + Duration::from_secs(60), address(99)).expect("they are quiet");
        assert_eq!(greetings.by_address.len(), 1, "nothing is kept of who went");
    }

    #[test]
    fn nodes_do_not_wait_behind_strangers() {
        let mut greetings = Greetings::default();
        greetings.agree(BTreeSet::from([address(1)]));
        greetings.meet(address(2));
        for last in 3..=255 {
            let _ = greetings.admit(NOW, address(last));
        }
        assert_eq!(greetings.count(), PEER_GREETINGS_MAX);
        assert!(greetings.admit(NOW, address(3)).is_err());
        let mapped = std::net::Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().into();
        for known in [address(1), address(2), mapped] {
            assert_eq!(greetings.admit(NOW, known), Ok(Standing::Known));
        }
        greetings.release(mapped, Standing::Known);
        // Nor does one of them take the places of the others.
        let own = (0..99).filter(|_| greetings.admit(NOW, address(1)).is_ok()).count();
        assert!(own < PEER_GREETINGS_PER_ADDRESS_MAX, "{own}");
        assert_eq!(greetings.admit(NOW, address(2)), Ok(Standing::Known));
    }
}
