//! A disk that is opened while parts of it cannot be read: nothing acknowledged is undone, and one
//! good copy is enough.

mod support;

use proto::{BLOCK_SIZE, BlockRange, Change, MemberError, MemberRequest};
use store::{DamagedPart, Notice};
use support::{GENERATION, Host, KEY, LINEAGE, data, values, write};

fn read(host: &mut Host, first: u32, count: u32) -> Result<Vec<u64>, MemberError> {
    let blocks = BlockRange::new(first, count).expect("inside");
    let request =
        MemberRequest::Read { lineage: LINEAGE, key: KEY, generation: GENERATION, blocks };
    host.ask(request).map(|reply| values(&reply))
}

/// The blocks of the medium that hold what `change` wrote.
fn addresses_of(host: &Host, change: &Change) -> Vec<u64> {
    let Change::Data { payload, .. } = change else { unreachable!("it is data") };
    let find = |wanted: &[u8]| {
        let mut blocks = host.medium.written.chunks(BLOCK_SIZE);
        blocks.position(|block| block == wanted).expect("it is on the medium") as u64
    };
    payload.as_slice().chunks(BLOCK_SIZE).map(find).collect()
}

/// A disk whose process died after two acknowledged writes, neither of them flushed.
fn crashed() -> (Host, Vec<u64>) {
    let mut host = Host::formatted(256 << 20, None, 128 << 10);
    host.open().expect("a new disk opens");
    host.ask(write(KEY, 1, data(0, &[1, 2, 3, 4]))).expect("written");
    let second = data(1, &[7, 8]);
    host.ask(write(KEY, 2, second.clone())).expect("written");
    let addresses = addresses_of(&host, &second);
    host.crash(&mut support::Random::new(1), false);
    (host, addresses)
}

#[test]
fn what_cannot_be_read_while_it_is_verified_is_not_cut_off() {
    let (mut host, addresses) = crashed();
    host.medium.unreadable = vec![addresses[0]];
    let opened = host.open().expect("it opens");
    assert_eq!(opened.records_cut, 0);
    assert_eq!(read(&mut host, 1, 1), Err(MemberError::Corrupt { key: KEY, block: 1 }));
    assert_eq!(read(&mut host, 2, 2), Ok(vec![8, 4]));
    let damaged = host.notices.iter().filter_map(|notice| match notice {
        Notice::Damaged(damage) => Some((damage.part, damage.address, damage.unreadable)),
        _ => None,
    });
    let part = DamagedPart::Data { lineage: LINEAGE, key: KEY, block: 1 };
    assert_eq!(damaged.collect::<Vec<_>>().first(), Some(&(part, addresses[0], true)));
    host.medium.unreadable.clear();
    assert_eq!(read(&mut host, 0, 4), Ok(vec![1, 7, 8, 4]));
    host.store().check();
}

/// The neighbours of an unreadable block are read by themselves, and one that is proven bad is
/// still cut off, with what follows it.
#[test]
fn an_unreadable_block_hides_no_torn_neighbour() {
    let (mut host, addresses) = crashed();
    host.medium.unreadable = vec![addresses[0]];
    host.medium.written[addresses[1] as usize * BLOCK_SIZE + 9] ^= 1;
    let opened = host.open().expect("it opens");
    assert_eq!(opened.records_cut, 1);
    host.medium.unreadable.clear();
    assert_eq!(read(&mut host, 0, 4), Ok(vec![1, 2, 3, 4]));
    assert!(host.store().status().damages.is_empty());
}
