//! A disk that is opened while parts of it cannot be read: nothing acknowledged is undone, and one
//! good copy is enough.

mod support;

use proto::{
    BLOCK_SIZE, BlockRange, Change, DiskError, Duration, MemberError, MemberRequest, ObjectKey,
    Stamp,
};
use store::{Damage, DamagedPart, Notice, OpenError, check};
use support::{GENERATION, Host, KEY, LINEAGE, Medium, data, values, write};

const EIO: DiskError = DiskError::Io(5);

fn read(host: &mut Host, first: u32, count: u32) -> Result<Vec<u64>, MemberError> {
    let blocks = BlockRange::new(first, count).expect("inside");
    let request = MemberRequest::Read {
        lineage: LINEAGE,
        key: KEY,
        generation: GENERATION,
        under: None,
        blocks,
    };
    host.ask(request).map(|reply| values(&reply))
}

/// What the disk told of.
fn damages(host: &Host) -> Vec<Damage> {
    let damages = host.notices.iter().filter_map(|notice| match notice {
        Notice::Damaged(damage) => Some(*damage),
        _ => None,
    });
    damages.collect()
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

/// A disk whose process died after two acknowledged writes, neither of them flushed; where the data
/// of the second one is, and its batch.
fn crashed() -> (Host, Vec<u64>, u64) {
    let mut host = Host::formatted(256 << 20, None, 128 << 10);
    host.open().expect("a new disk opens");
    host.ask(write(KEY, 1, data(0, &[1, 2, 3, 4]))).expect("written");
    let second = data(1, &[7, 8]);
    let batch = batch_of(&mut host, write(KEY, 2, second.clone()));
    let addresses = addresses_of(&host, &second);
    host.crash(&mut support::Random::new(1), false);
    (host, addresses, batch)
}

#[test]
fn what_cannot_be_read_while_it_is_verified_is_not_cut_off() {
    let (mut host, addresses, _) = crashed();
    host.medium.unreadable = vec![addresses[0]];
    let opened = host.open().expect("it opens");
    assert_eq!(opened.records_cut, 0);
    assert_eq!(read(&mut host, 1, 1), Err(MemberError::Corrupt { key: KEY, block: 1 }));
    assert_eq!(read(&mut host, 2, 2), Ok(vec![8, 4]));
    let part = DamagedPart::Data { lineage: LINEAGE, key: KEY, block: 1 };
    let first = damages(&host).first().copied();
    assert_eq!(first, Some(Damage { part, address: addresses[0], unreadable: true }));
    host.medium.unreadable.clear();
    assert_eq!(read(&mut host, 0, 4), Ok(vec![1, 7, 8, 4]));
    host.store().check();
}

/// The neighbours of an unreadable block are read by themselves, and one that is proven bad is
/// still cut off, with what follows it.
#[test]
fn an_unreadable_block_hides_no_torn_neighbour() {
    let (mut host, addresses, _) = crashed();
    host.medium.unreadable = vec![addresses[0]];
    host.medium.written[addresses[1] as usize * BLOCK_SIZE + 9] ^= 1;
    let opened = host.open().expect("it opens");
    assert_eq!(opened.records_cut, 1);
    host.medium.unreadable.clear();
    assert_eq!(read(&mut host, 0, 4), Ok(vec![1, 2, 3, 4]));
    assert!(host.store().status().damages.is_empty());
}

/// What was cut off had been acknowledged, though the machine kept its power: the disk does not say
/// that it has all of it, and neither does the next opening.
#[test]
fn a_disk_that_cut_something_off_has_not_all_it_acknowledged() {
    for is_torn in [false, true] {
        let mut host = Host::formatted(256 << 20, None, 128 << 10);
        let open = |host: &mut Host| {
            let options = store::Options { boot: [1; 16], ..host.options() };
            let opened = host.open_with(options).expect("it opens");
            (opened, host.store().status().lossless_from)
        };
        let first = open(&mut host).0.incarnation;
        let change = data(0, &[1, 2]);
        host.ask(write(KEY, 1, change.clone())).expect("written");
        let address = addresses_of(&host, &change)[1] as usize;
        host.crash(&mut support::Random::new(1), false);
        host.medium.written[address * BLOCK_SIZE + 9] ^= u8::from(is_torn);
        let (opened, lossless_from) = open(&mut host);
        assert_eq!(opened.records_cut, u64::from(is_torn));
        assert_eq!(lossless_from, if is_torn { opened.incarnation } else { first });
        host.crash(&mut support::Random::new(2), false);
        let (again, lossless_later) = open(&mut host);
        assert_eq!((again.records_cut, lossless_later), (0, lossless_from));
    }
}

/// Where the batches of the log are, in the order of their sequences.
fn batches(medium: &Medium) -> Vec<u64> {
    let blocks = medium.written.chunks(BLOCK_SIZE).zip(0..);
    let batches = blocks.filter(|(block, _)| block.starts_with(b"SLOG"));
    let sequence =
        |block: &[u8]| u64::from_le_bytes(block[16..24].try_into().expect("eight bytes"));
    let mut batches: Vec<(u64, u64)> = batches.map(|(block, at)| (sequence(block), at)).collect();
    batches.sort_unstable();
    batches.into_iter().map(|(_, at)| at).collect()
}

/// Makes a change and says where in the log it is: in the first batch that is new, because nothing
/// else was under way when it was asked for.
fn batch_of(host: &mut Host, request: MemberRequest) -> u64 {
    host.settle();
    let before = batches(&host.medium).len();
    host.ask(request).expect("written");
    batches(&host.medium)[before]
}

/// A disk whose process died after two flushed writes; that they were flushed is in the log. Also
/// the batches of the two.
fn flushed() -> (Host, [u64; 2]) {
    let mut host = Host::formatted(256 << 20, None, 128 << 10);
    host.open().expect("a new disk opens");
    let mut written = [0; 2];
    for (at, batch) in written.iter_mut().enumerate() {
        let number = at as u64 + 1;
        *batch = batch_of(&mut host, write(KEY, number, data(at as u32, &[number])));
        host.ask(MemberRequest::Flush {
            lineage: LINEAGE,
            generation: GENERATION,
            settled: Stamp::default(),
        })
        .expect("flushed");
    }
    host.pass(Duration::from_millis(200));
    host.crash(&mut support::Random::new(1), false);
    (host, written)
}

#[test]
fn one_unreadable_superblock_is_mended_and_two_are_refused() {
    let (host, _) = flushed();
    for address in [0, 1] {
        let mut host = Host::on(host.medium.clone());
        host.medium.unreadable = vec![address];
        let report = check::check(&mut Unreadable(&host.medium)).expect("the other one rules");
        let damage = Damage { part: DamagedPart::Superblock, address, unreadable: true };
        assert_eq!(report.damages, [damage]);
        host.open().expect("the other one rules");
        assert_eq!(damages(&host), [damage]);
        assert_eq!(read(&mut host, 0, 2), Ok(vec![1, 2]));
        host.settle();
        let told = host.notices.contains(&Notice::Mended(damage));
        assert!(told && host.store().status().damages.is_empty(), "a checkpoint mends it");
        host.crash(&mut support::Random::new(1), true);
        host.medium.unreadable = vec![1 - address];
        host.open().expect("the one that was mended rules");
    }
    let mut host = Host::on(host.medium.clone());
    host.medium.unreadable = vec![0, 1];
    let before = host.medium.written.clone();
    assert_eq!(host.open().err(), Some(OpenError::Medium(EIO)));
    let report = check::check(&mut Unreadable(&host.medium));
    assert_eq!(report.err(), Some(OpenError::Medium(EIO)));
    assert!(host.medium.written == before, "not a byte was changed");
}

/// The medium as the offline check reads it.
struct Unreadable<'a>(&'a Medium);

impl check::ReadMedium for Unreadable<'_> {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let blocks = offset / BLOCK_SIZE as u64..(offset + buffer.len() as u64) / BLOCK_SIZE as u64;
        if self.0.unreadable.iter().any(|bad| blocks.contains(bad)) {
            return Err(EIO);
        }
        (&mut &self.0.written[..]).read(offset, buffer)
    }

    fn bytes(&self) -> u64 {
        self.0.written.len() as u64
    }
}

#[test]
fn an_unreadable_batch_that_was_durable_refuses_the_disk() {
    let (mut host, written) = flushed();
    for address in written {
        host.medium.unreadable = vec![address];
        assert_eq!(host.open().err(), Some(OpenError::LogDamaged { address }));
    }
    host.medium.unreadable.clear();
    host.open().expect("it opens");
    assert_eq!(read(&mut host, 0, 2), Ok(vec![1, 2]));
}

/// Nothing says that it was durable: it is the end of the log, as if it were torn, and is told of.
#[test]
fn an_unreadable_batch_that_was_never_flushed_is_the_torn_tail() {
    let (mut host, _, address) = crashed();
    host.medium.unreadable = vec![address];
    host.open().expect("it opens");
    assert_eq!(damages(&host), [Damage { part: DamagedPart::Log, address, unreadable: true }]);
    assert_eq!(read(&mut host, 0, 4), Ok(vec![1, 2, 3, 4]));
    // What comes back later is older than what was written since in its place.
    host.ask(write(KEY, 2, data(0, &[9]))).expect("written");
    host.medium.unreadable.clear();
    host.crash(&mut support::Random::new(1), false);
    host.open().expect("it opens");
    assert_eq!(read(&mut host, 0, 4), Ok(vec![9, 2, 3, 4]));
}

/// Rot is told from a torn tail by later batches. That their neighbours cannot be read, and so a
/// read of all of them together, must not hide them.
#[test]
fn an_unreadable_block_beside_it_hides_no_rot_of_the_log() {
    let (mut host, written) = flushed();
    let last = *batches(&host.medium).last().expect("there are batches");
    host.medium.written[written[1] as usize * BLOCK_SIZE + 60] ^= 1;
    for unreadable in [last + 1, last + 9] {
        host.medium.unreadable = vec![unreadable];
        assert_eq!(host.open().err(), Some(OpenError::LogDamaged { address: written[1] }));
    }
}

/// Pages of maps that lie beside each other are read together while a disk is opened: one that
/// cannot be read damages itself alone.
#[test]
fn an_unreadable_map_page_damages_none_of_its_neighbours() {
    let mut host = Host::formatted(256 << 20, None, 128 << 10);
    host.open().expect("a new disk opens");
    let keys: Vec<ObjectKey> = (0..4).map(|index| ObjectKey { index, ..KEY }).collect();
    for &key in &keys {
        host.ask(write(key, 1, data(0, &[7, 8]))).expect("written");
    }
    host.close();
    host.open().expect("it opens");
    for &key in &keys {
        host.ask(write(key, 2, data(1, &[9]))).expect("written");
    }
    let pages = host.medium.written.chunks(BLOCK_SIZE).zip(0u64..);
    let pages: Vec<u64> =
        pages.filter(|(block, _)| block.starts_with(b"SMAP")).map(|(_, at)| at).collect();
    assert!(pages.windows(2).all(|pair| pair[0] + 1 == pair[1]), "they are neighbours: {pages:?}");
    host.crash(&mut support::Random::new(1), false);
    host.medium.unreadable = vec![pages[1]];
    host.open().expect("it opens");
    let told = damages(&host);
    assert_eq!(told.iter().map(|damage| damage.address).collect::<Vec<_>>(), [pages[1]]);
    let bad: Vec<bool> = keys
        .iter()
        .map(|&key| {
            let blocks = BlockRange::new(0, 2).expect("inside");
            let generation = GENERATION;
            let read =
                MemberRequest::Read { lineage: LINEAGE, key, generation, under: None, blocks };
            host.ask(read).map(|reply| assert_eq!(values(&reply), [7, 9])).is_err()
        })
        .collect();
    assert_eq!(bad.iter().filter(|&&bad| bad).count(), 1, "{bad:?}");
}

/// What a truncation took of the log is not taken for blocks that cannot be read: without a
/// checkpoint nothing else would be missed.
#[test]
fn a_medium_that_ends_within_its_log_is_refused() {
    let (host, _) = flushed();
    let needed = 3 * BLOCK_SIZE + (128 << 10);
    for blocks in [3, 4, 8, needed / BLOCK_SIZE - 1] {
        let mut host = Host::on(host.medium.clone());
        host.medium.written.truncate(blocks * BLOCK_SIZE);
        let (found, needed) = ((blocks * BLOCK_SIZE) as u64, needed as u64);
        assert_eq!(host.open().err(), Some(OpenError::Truncated { found, needed }));
    }
}
