//! Writing: appends and snapshots, from the wish to the answer.

use super::error::AppendError;
use super::layout::{BLOCK, Body, COPIES, Frame, Header};
use super::{Effect, Journal, Phase, Request, Steps, Token};
use proto::limits::{JOURNAL_APPEND_BYTES_MAX, JOURNAL_SNAPSHOT_BYTES_MAX};
use proto::{DiskError, DiskRequest, Payload};

impl Journal {
    /// Appends records, durably and all or nothing. Ends with [`Effect::Done`].
    ///
    /// # Panics
    /// If an append or snapshot is under way, the journal was not opened, or the records are longer
    /// than `JOURNAL_APPEND_BYTES_MAX` with 4 bytes for each: bugs of the caller.
    pub fn append(&mut self, token: Token, records: Vec<Vec<u8>>, effects: &mut Vec<Effect>) {
        let body = Body::Records(records);
        assert!(body.bytes() <= JOURNAL_APPEND_BYTES_MAX, "an append that is too long");
        self.begin_or_wait(token, body, effects);
    }

    /// Replaces the snapshot and all records by this snapshot, durably and all or nothing. Ends
    /// with [`Effect::Done`].
    ///
    /// # Panics
    /// If an append or snapshot is under way, the journal was not opened, or the snapshot is longer
    /// than `JOURNAL_SNAPSHOT_BYTES_MAX`: bugs of the caller.
    pub fn snapshot(&mut self, token: Token, bytes: Vec<u8>, effects: &mut Vec<Effect>) {
        assert!(bytes.len() <= JOURNAL_SNAPSHOT_BYTES_MAX, "a snapshot that is too long");
        self.begin_or_wait(token, Body::Snapshot(Some(bytes)), effects);
    }

    /// Begins an append or snapshot, once a verification under way has ended.
    fn begin_or_wait(&mut self, token: Token, body: Body, effects: &mut Vec<Effect>) {
        match &self.phase {
            Phase::Ready => self.begin(token, body, effects),
            Phase::Failed(error) => effects.push(Effect::Done { token, result: Err(*error) }),
            Phase::VerifyHeaders | Phase::Verify(_) | Phase::Repair { .. } => {
                assert!(self.waiting.replace((token, body)).is_none(), "one request at a time");
            }
            _ => panic!("one request at a time, and only once opened"),
        }
    }

    /// Begins what came during a verification that has ended.
    pub(super) fn begin_waiting(&mut self, effects: &mut Vec<Effect>) {
        if let Some((token, body)) = self.waiting.take() {
            self.begin_or_wait(token, body, effects);
        }
    }

    /// Begins an append or snapshot: prepares blocks for it, where that is due, or writes it at
    /// once.
    fn begin(&mut self, token: Token, body: Body, effects: &mut Vec<Effect>) {
        let request = self.request(token, body);
        if request.frame_end() >= self.header.half_blocks {
            let result = Err(AppendError::NoSpace);
            return effects.push(Effect::Done { token, result });
        }
        if request.prepared == self.prepared_in(request.generation) {
            return self.write(request, effects);
        }
        self.prepare(request, effects);
    }

    /// Prepares the blocks that the request wants prepared and that are not.
    fn prepare(&mut self, request: Request, effects: &mut Vec<Effect>) {
        let present = self.prepared_in(request.generation);
        let prepare = COPIES.map(|copy| DiskRequest::Allocate {
            offset: self.header.half_offset(copy, request.generation, present),
            length: u64::from(request.prepared - present) * BLOCK,
            zero: true,
        });
        self.phase = Phase::Prepare { request, flushing: false };
        self.io.start(prepare.into(), effects);
    }

    /// Where an append or snapshot goes, and how much of its half it wants prepared.
    fn request(&self, token: Token, body: Body) -> Request {
        let (generation, block) = match body {
            Body::Records(_) => (self.header.generation, self.end),
            Body::Snapshot(_) => (self.header.generation + 1, 0),
        };
        let present = self.prepared_in(generation);
        let mut request = Request { token, body, generation, block, prepared: present };
        // Ahead of need: half a step is left, or one more is prepared.
        let end = request.frame_end();
        if end + self.step_blocks / 2 >= present {
            request.prepared = (end + self.step_blocks).min(self.header.half_blocks).max(present);
        }
        request
    }

    /// How much of a half is prepared already; the one that does not rule is prepared anew.
    fn prepared_in(&self, generation: u64) -> u32 {
        if generation == self.header.generation { self.prepared } else { 0 }
    }

    /// The blocks were prepared, or not.
    pub(super) fn prepare_ended(
        &mut self,
        mut request: Request,
        flushing: bool,
        error: Option<DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        match error {
            None if flushing => self.write(request, effects),
            None => {
                self.phase = Phase::Prepare { request, flushing: true };
                self.io.start(vec![DiskRequest::Flush], effects);
            }
            Some(DiskError::NoSpace) if !flushing => {
                let present = self.prepared_in(request.generation);
                if request.frame_end() < present {
                    // It was only ahead of need.
                    request.prepared = present;
                    return self.write(request, effects);
                }
                if request.prepared > request.frame_end() + 1 {
                    // What it needs itself may be there: a half keeps the space it ever had.
                    request.prepared = request.frame_end() + 1;
                    return self.prepare(request, effects);
                }
                self.become_ready();
                let result = Err(AppendError::NoSpace);
                effects.push(Effect::Done { token: request.token, result });
            }
            Some(error) => self.fail(request.token, error, effects),
        }
    }

    /// Writes the frame, in the order that `docs/formats/journal.md` gives.
    fn write(&mut self, request: Request, effects: &mut Vec<Effect>) {
        assert!(request.frame_end() < request.prepared, "the block behind a frame is prepared");
        let frame = Frame {
            cluster: self.header.cluster,
            generation: request.generation,
            sequence: self.sequence + 1,
            prepared_blocks: request.prepared,
            body: &request.body,
        };
        let frame = frame.encode();
        let write_frame = |copy| DiskRequest::Write {
            offset: self.header.half_offset(copy, request.generation, request.block),
            payloads: vec![frame.clone()],
        };
        let mut steps = Steps::new();
        if request.generation == self.header.generation {
            for copy in COPIES {
                steps.push_back(vec![write_frame(copy)]);
                steps.push_back(vec![DiskRequest::Flush]);
            }
        } else {
            steps.push_back(COPIES.map(write_frame).into());
            steps.push_back(vec![DiskRequest::Flush]);
            let header = Header { generation: request.generation, ..self.header };
            steps.extend(write_headers(header.encode()));
        }
        self.write_steps(request, steps, effects);
    }

    /// Goes on to the next step of a write; after the last one it is answered.
    pub(super) fn write_steps(
        &mut self,
        request: Request,
        mut steps: Steps,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(step) = steps.pop_front() {
            self.phase = Phase::Write { request, steps };
            return self.io.start(step, effects);
        }
        self.sequence += 1;
        self.header.generation = request.generation;
        self.end = request.frame_end();
        self.prepared = request.prepared;
        self.become_ready();
        effects.push(Effect::Done { token: request.token, result: Ok(()) });
    }

    /// The medium failed: what is on it is unknown until it is read again.
    pub(super) fn fail(&mut self, token: Token, error: DiskError, effects: &mut Vec<Effect>) {
        let error = AppendError::Failed(error);
        self.phase = Phase::Failed(error);
        effects.push(Effect::Done { token, result: Err(error) });
    }
}

/// Both headers, one after the other: at any moment one of them is whole.
pub(super) fn write_headers(header: Payload) -> Vec<Vec<DiskRequest>> {
    let write = |copy| {
        vec![DiskRequest::Write { offset: Header::offset(copy), payloads: vec![header.clone()] }]
    };
    vec![write(0), vec![DiskRequest::Flush], write(1), vec![DiskRequest::Flush]]
}
