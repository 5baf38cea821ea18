//! Creating a journal, and opening one: from the headers to ready.

use super::error::OpenError;
use super::layout::{BLOCK, Body, COPIES, Frame, Header, HeaderBlock};
use super::recovery::{Recovery, Step};
use super::writing::write_headers;
use super::{Effect, Expected, Identity, Journal, Phase, Recovered, Steps};
use proto::{Buffer, DiskError, DiskRequest};

pub(super) type Results = Vec<Result<Option<Buffer>, DiskError>>;

impl Journal {
    /// The headers are read: opens the journal they name.
    pub(super) fn headers_read(
        &mut self,
        expected: Expected,
        results: Results,
        effects: &mut Vec<Effect>,
    ) {
        let blocks = header_blocks(results);
        let header = match ruling_header(blocks).and_then(|header| check(header, expected)) {
            Ok(header) => header,
            Err(error) => return effects.push(Effect::Opened(Err(error))),
        };
        self.header = header;
        let wrong = |copy: &usize| blocks[*copy] != HeaderBlock::Valid(header);
        let wrong_headers = COPIES.into_iter().filter(wrong).collect();
        let mut recovery = Recovery::new(header, wrong_headers, self.medium_bytes);
        let step = recovery.proceed();
        self.recover(Box::new(recovery), step, effects);
    }

    /// Goes on with reading frames.
    pub(super) fn recover(
        &mut self,
        recovery: Box<Recovery>,
        step: Step,
        effects: &mut Vec<Effect>,
    ) {
        match step {
            Step::Read(requests) => {
                self.phase = Phase::Recover(recovery);
                self.io.start(requests, effects);
            }
            Step::Refused(error) => effects.push(Effect::Opened(Err(error))),
            Step::Finished => self.recovered(*recovery, effects),
        }
    }

    /// All frames are read: makes them durable in both copies.
    fn recovered(&mut self, mut recovery: Recovery, effects: &mut Vec<Effect>) {
        self.sequence = recovery.sequence.expect("the snapshot's frame is there");
        self.end = recovery.end;
        self.prepared = recovery.prepared;
        let steps = recovery.repair_steps();
        let recovered = self.recovered_as(recovery.snapshot, recovery.records, recovery.damages);
        self.make_ready(steps, recovered, effects);
    }

    fn recovered_as(
        &self,
        snapshot: Option<Vec<u8>>,
        records: Vec<Vec<u8>>,
        repaired: u32,
    ) -> Recovered {
        let Header { cluster, node, created_unix_s, .. } = self.header;
        let identity = Identity { cluster, node };
        Recovered { identity, created_unix_s, snapshot, records, repaired }
    }

    /// Goes on to the next step; after the last one the journal is open.
    pub(super) fn make_ready(
        &mut self,
        mut steps: Steps,
        recovered: Recovered,
        effects: &mut Vec<Effect>,
    ) {
        while let Some(step) = steps.pop_front() {
            if !step.is_empty() {
                self.phase = Phase::MakeReady { steps, recovered };
                return self.io.start(step, effects);
            }
        }
        self.become_ready();
        effects.push(Effect::Opened(Ok(recovered)));
    }

    /// The journal is open and has nothing to do.
    pub(super) fn become_ready(&mut self) {
        let last = self.header.half_offset(COPIES.len() - 1, self.header.generation, self.prepared);
        self.medium_bytes = self.medium_bytes.max(last);
        self.phase = Phase::Ready;
    }

    /// The headers are read: creates the journal, if there is none.
    pub(super) fn headers_read_to_create(&mut self, results: Results, effects: &mut Vec<Effect>) {
        match ruling_header(header_blocks(results)) {
            Err(OpenError::Blank) => {}
            Err(error) => return effects.push(Effect::Opened(Err(error))),
            Ok(_) => return effects.push(Effect::Opened(Err(OpenError::Exists))),
        }
        let header = self.header;
        self.sequence = 1;
        self.end = 1;
        self.prepared = (1 + self.step_blocks).min(header.half_blocks);
        let prepare = |copy, generation| DiskRequest::Allocate {
            offset: header.half_offset(copy, generation, 0),
            length: u64::from(self.prepared) * BLOCK,
            zero: true,
        };
        // The other half too, so that the first snapshot has its place whatever fills the file
        // system until then.
        let mut allocations: Vec<_> =
            [0, 1].into_iter().flat_map(|half| COPIES.map(|copy| prepare(copy, half))).collect();
        // The headers are zero, or what an unfinished creation left in copy 0: a torn write of
        // zeros over copy 1 would look like damage.
        let length = COPIES.len() as u64 * BLOCK;
        allocations.push(DiskRequest::Allocate { offset: 0, length, zero: false });
        let body = Body::Snapshot(None);
        let frame = Frame {
            cluster: header.cluster,
            generation: header.generation,
            sequence: self.sequence,
            prepared_blocks: self.prepared,
            body: &body,
        };
        let frame = frame.encode();
        let frames = COPIES.map(|copy| DiskRequest::Write {
            offset: header.half_offset(copy, header.generation, 0),
            payloads: vec![frame.clone()],
        });
        let flush = || vec![DiskRequest::Flush];
        let mut steps = Steps::from([allocations, flush(), frames.into(), flush()]);
        steps.extend(write_headers(header.encode()));
        let recovered = self.recovered_as(None, Vec::new(), 0);
        self.make_ready(steps, recovered, effects);
    }
}

/// What the blocks of both headers hold. A medium that ends before them holds zeros there.
pub(super) fn header_blocks(results: Results) -> [HeaderBlock; 2] {
    let mut blocks = [HeaderBlock::Zero; 2];
    for (block, result) in blocks.iter_mut().zip(results) {
        *block = match result {
            Ok(Some(buffer)) => Header::decode(buffer.as_slice()),
            _ => HeaderBlock::Bad,
        };
    }
    blocks
}

/// The header that counts.
fn ruling_header(blocks: [HeaderBlock; 2]) -> Result<Header, OpenError> {
    use HeaderBlock::*;
    match blocks {
        [Valid(first), Valid(second)] => {
            let newer = if first.generation >= second.generation { first } else { second };
            let same = Header { generation: newer.generation, ..first }
                == Header { generation: newer.generation, ..second };
            if same { Ok(newer) } else { Err(OpenError::NoHeader) }
        }
        [Version(version), _] | [_, Version(version)] => Err(OpenError::Version(version)),
        [Valid(header), _] | [_, Valid(header)] => Ok(header),
        [Zero | Bad, Zero] => Err(OpenError::Blank),
        [Zero | Bad, Bad] => Err(OpenError::NoHeader),
    }
}

/// Refuses a journal that is not the expected one.
pub(super) fn check(header: Header, expected: Expected) -> Result<Header, OpenError> {
    if let Some(expected) = expected.cluster.filter(|expected| *expected != header.cluster) {
        return Err(OpenError::WrongCluster { found: header.cluster, expected });
    }
    if let Some(expected) = expected.node.filter(|expected| *expected != header.node) {
        return Err(OpenError::WrongNode { found: header.node, expected });
    }
    Ok(header)
}
