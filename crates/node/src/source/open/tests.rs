use super::*;
use crate::nbd_client::Headers;
use proptest::prelude::*;

fn export(bytes: u64, block_min: u32, payload_max: u32) -> Export {
    Export {
        bytes,
        read_only: true,
        block_min,
        payload_max,
        context: None,
        headers: Headers::Structured,
    }
}

fn extents(kinds: &[(u64, bool)]) -> Vec<Extent> {
    kinds.iter().map(|&(length, zero)| Extent { length, hole: zero, zero }).collect()
}

#[test]
fn only_blocks_that_are_zeros_from_end_to_end_are_said_to_be() {
    use BlockState::{Data, Zero};
    // Length, what the server says, what the blocks are.
    type Row = (u64, &'static [(u64, bool)], &'static [(u32, BlockState)]);
    let table: [Row; 7] = [
        (8192, &[(8192, true)], &[(2, Zero)]),
        (8192, &[(8192, false)], &[(2, Data)]),
        (8192, &[(4096, true), (4096, false)], &[(1, Zero), (1, Data)]),
        // Half a block.
        (12288, &[(2048, true), (2048, false), (8192, true)], &[(1, Data), (2, Zero)]),
        // Two answers of the same kind.
        (8192, &[(512, true), (7680, true)], &[(2, Zero)]),
        // The server answered for a part only.
        (12288, &[(4096, true)], &[(1, Zero), (2, Data)]),
        // The source ends within the last block.
        (4608, &[(4608, true)], &[(2, Zero)]),
    ];
    for (length, said, wanted) in table {
        let found = runs(length, &zero_ranges(&extents(said)));
        assert_eq!(found, wanted, "{length} {said:?}");
    }
}

proptest! {
    #[test]
    fn requests_are_aligned_for_the_server_and_bring_every_byte_once(
        step in 0u32..=16,
        most in 16u32..=22,
        offset_blocks in 0u64..64,
        length in 1u64..=1 << 20,
        beyond in 0u64..100_000,
    ) {
        let (step, offset) = (1u32 << step, offset_blocks * 4096);
        let bytes = (offset + length + beyond).next_multiple_of(u64::from(step));
        let ranges = ranges(export(bytes, step, 1 << most), offset, length);
        let mut at = 0;
        for range in &ranges {
            prop_assert!(range.start.is_multiple_of(u64::from(step)));
            prop_assert!(range.length.is_multiple_of(step) && range.length <= 1 << most);
            prop_assert!(range.start + u64::from(range.length) <= bytes);
            prop_assert_eq!(range.at, at);
            prop_assert_eq!(range.start + range.skip as u64, offset + at as u64);
            prop_assert!(range.skip + range.wanted <= range.length as usize);
            at += range.wanted;
        }
        prop_assert_eq!(at as u64, length);
    }
}
