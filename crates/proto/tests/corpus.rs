//! Replays the fuzz corpus of frames between nodes, and keeps its seeds: each is written here,
//! named for what it is. After a change of the seeds,
//! `UPDATE_CORPUS=1 cargo test -p proto --test corpus` writes them anew.

#[path = "../../../fuzz/inputs/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/inputs/wire_frames.rs"]
mod wire_frames;

/// Judged with the checksums it has, or with ones that fit.
const AS_IT_IS: u8 = 0;
const FITTING: u8 = 1;

#[test]
fn corpus_of_frames() {
    corpus::check("wire_frames", seeds(), wire_frames::wire_frames);
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(digit).collect()
}

/// Every frame of the golden bytes, with a payload behind those that have one.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = vec![("empty".to_owned(), Vec::new())];
    for line in include_str!("../src/wire/golden.txt").lines() {
        let (name, hex) = line.split_once(' ').expect("a name and bytes");
        let mut frame = unhex(hex);
        let payload = u32::from_le_bytes(frame[20..24].try_into().expect("four bytes"));
        frame.extend(vec![7; payload as usize]);
        let name = name.to_lowercase();
        seeds.push((name.clone(), [&[FITTING], &frame[..]].concat()));
        if name == "hello" {
            seeds.push((format!("{name}-as-it-is"), [&[AS_IT_IS], &frame[..]].concat()));
        }
        if ["writedata-1", "fenced-1", "read-1", "install-1", "surveyed-1"].contains(&name.as_str())
        {
            let cut = &frame[..frame.len() - 5];
            seeds.push((format!("{name}-cut"), [&[FITTING], cut].concat()));
            frame[6..8].fill(0xff);
            frame[20..24].fill(0xff);
            seeds.push((format!("{name}-too-long"), [&[FITTING], &frame[..]].concat()));
        }
    }
    seeds
}
