//! Metadata contexts: what block status can tell of an export, and how a client chooses of it.

use super::wire::{self, MetaQuery, dirty_flag, extent_flag};
use proto::{BlockState, LayerId};
use volume::{Base, Changed, Extent, Operation, Tags};

/// What block status tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Context {
    /// `base:allocation`: where data is.
    Allocation,
    /// `sheepdog:dirty/TAG`: what differs from the snapshot with this layer.
    Dirty(LayerId),
}

impl Context {
    /// What the volume is asked for it.
    pub fn operation(self) -> Operation {
        match self {
            Context::Allocation => Operation::Status,
            Context::Dirty(base) => Operation::Difference { base },
        }
    }
}

/// A context as replies call it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    pub context: Context,
    pub name: String,
}

/// What a client asked about contexts, without what only the driver knows.
#[derive(Debug, Default)]
pub struct Wanted {
    pub allocation: bool,
    pub tags: Tags,
}

impl Wanted {
    /// Of `LIST_META_CONTEXT`, where no query at all means everything and a namespace all in it.
    pub fn listed(query: &MetaQuery) -> Wanted {
        let nothing = query.queries.is_empty();
        let mut wanted = Wanted::chosen(query);
        wanted.allocation |= nothing || query.asks(wire::BASE_WILDCARD);
        wanted.tags.all =
            nothing || query.asks(wire::SHEEPDOG_WILDCARD) || query.asks(wire::DIRTY_PREFIX);
        wanted
    }

    /// Of `SET_META_CONTEXT`, where each context is called by its name.
    pub fn chosen(query: &MetaQuery) -> Wanted {
        let mut named: Vec<String> = Vec::new();
        for text in query.queries.iter().filter_map(|query| std::str::from_utf8(query).ok()) {
            if let Some(tag) = text.strip_prefix(wire::DIRTY_PREFIX)
                && !tag.is_empty()
            {
                named.push(tag.to_owned());
            }
        }
        named.sort_unstable();
        named.dedup();
        let allocation = query.asks(wire::BASE_ALLOCATION);
        Wanted { allocation, tags: Tags { all: false, named } }
    }

    /// Whether the driver has to be asked.
    pub fn needs_bases(&self) -> bool {
        self.tags.all || !self.tags.named.is_empty()
    }
}

/// The contexts that there are of what was asked for.
pub fn found(allocation: bool, bases: &[Base]) -> Vec<Named> {
    let allocation = allocation
        .then(|| Named { context: Context::Allocation, name: wire::BASE_ALLOCATION.to_owned() });
    let dirty = bases.iter().map(|base| Named {
        context: Context::Dirty(base.layer),
        name: format!("{}{}", wire::DIRTY_PREFIX, base.tag),
    });
    allocation.into_iter().chain(dirty).collect()
}

/// What `base:allocation` says, as lengths and flags.
pub fn allocation(extents: &[Extent], length_max: u64, count_max: usize) -> Vec<(u64, u32)> {
    let flags = |state| match state {
        BlockState::Absent | BlockState::Zero => extent_flag::HOLE | extent_flag::ZERO,
        BlockState::Data => 0,
    };
    let runs = extents.iter().map(|extent| (extent.length, flags(extent.state)));
    descriptors(runs, length_max, count_max)
}

/// What `sheepdog:dirty/TAG` says, as lengths and flags.
pub fn dirty(runs: &[Changed], length_max: u64, count_max: usize) -> Vec<(u64, u32)> {
    let flags = |state| match state {
        None => 0,
        Some(BlockState::Data) => dirty_flag::DIRTY,
        Some(BlockState::Absent | BlockState::Zero) => dirty_flag::DIRTY | dirty_flag::ZERO,
    };
    let runs = runs.iter().map(|run| (run.length, flags(run.state)));
    descriptors(runs, length_max, count_max)
}

/// The runs as lengths and flags, neighbours of equal flags joined, at most `count_max` of them and
/// not past `length_max`.
fn descriptors(
    runs: impl Iterator<Item = (u64, u32)>,
    length_max: u64,
    count_max: usize,
) -> Vec<(u64, u32)> {
    let mut descriptors: Vec<(u64, u32)> = Vec::new();
    let mut left = length_max;
    for (length, flags) in runs {
        let length = length.min(left);
        if length == 0 {
            break;
        }
        left -= length;
        let count = descriptors.len();
        match descriptors.last_mut() {
            Some((joined, last)) if *last == flags => *joined += length,
            _ if count == count_max => break,
            _ => descriptors.push((length, flags)),
        }
    }
    descriptors
}

#[cfg(test)]
mod tests {
    use super::*;
    use BlockState::{Absent, Data, Zero};

    #[test]
    fn extents_are_joined_cut_and_counted() {
        let check = |extents: &[(u64, BlockState)], length, count, expected: &[(u64, u32)]| {
            let extents: Vec<Extent> =
                extents.iter().map(|&(length, state)| Extent { length, state }).collect();
            assert_eq!(allocation(&extents, length, count), expected);
        };
        check(&[(4096, Absent), (4096, Zero), (4096, Data)], 12288, 9, &[(8192, 3), (4096, 0)]);
        check(&[(4096, Data), (1 << 40, Absent)], 8192, 9, &[(4096, 0), (4096, 3)]);
        check(&[(1 << 40, Data)], 1 << 33, 9, &[(1 << 33, 0)]);
        check(&[(512, Data), (512, Zero), (512, Data)], 1536, 1, &[(512, 0)]);
        check(&[(512, Zero), (512, Absent), (512, Data)], 1536, 1, &[(1024, 3)]);
        check(&[(4096, Data), (4096, Zero)], 4096, 9, &[(4096, 0)]);
    }

    #[test]
    fn changes_have_the_documented_flags() {
        let check = |runs: &[(u64, Option<BlockState>)], length, expected: &[(u64, u32)]| {
            let runs: Vec<Changed> =
                runs.iter().map(|&(length, state)| Changed { length, state }).collect();
            assert_eq!(dirty(&runs, length, 9), expected);
        };
        check(&[(4096, None), (8192, Some(Data))], 12288, &[(4096, 0), (8192, 1)]);
        check(&[(4096, Some(Zero)), (4096, Some(Absent))], 8192, &[(8192, 3)]);
        check(&[(4096, Some(Data)), (1 << 40, None)], 8192, &[(4096, 1), (4096, 0)]);
        check(&[(1 << 40, Some(Zero)), (512, None)], 1 << 33, &[(1 << 33, 3)]);
    }

    #[test]
    fn a_query_is_a_name_a_namespace_or_nothing() {
        // Listed or chosen; queries; allocation, all, tags.
        type Row = (bool, &'static [&'static str], bool, bool, &'static [&'static str]);
        let table: [Row; 10] = [
            (true, &[], true, true, &[]),
            (false, &[], false, false, &[]),
            (true, &["base:"], true, false, &[]),
            (false, &["base:"], false, false, &[]),
            (true, &["sheepdog:"], false, true, &[]),
            (true, &["sheepdog:dirty/"], false, true, &[]),
            (false, &["sheepdog:", "sheepdog:dirty/"], false, false, &[]),
            (true, &["sheepdog:dirty/a"], false, false, &["a"]),
            (false, &["sheepdog:dirty/b", "sheepdog:dirty/a"], false, false, &["a", "b"]),
            (false, &["base:allocation", "sheepdog:dirtya", "x:y"], true, false, &[]),
        ];
        for (lists, queries, allocation, all, named) in table {
            let queries = queries.iter().map(|query| query.as_bytes()).collect();
            let query = MetaQuery { name: b"disk", queries };
            let wanted = if lists { Wanted::listed(&query) } else { Wanted::chosen(&query) };
            let found = (wanted.allocation, wanted.tags.all, wanted.tags.named);
            let named: Vec<String> = named.iter().map(|tag| tag.to_string()).collect();
            assert_eq!(found, (allocation, all, named), "{query:?}");
        }
    }
}
