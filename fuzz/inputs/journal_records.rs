/// A block or a frame of the journal as the medium may give it back. The first byte says which,
/// and whether a frame's checksums are made to fit, so that what lies behind them is reached.
pub fn journal_records(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    match choice % 3 {
        0 => store::journal::fuzzing::header(bytes),
        other => store::journal::fuzzing::frame(&mut bytes.to_vec(), other == 1),
    }
}
