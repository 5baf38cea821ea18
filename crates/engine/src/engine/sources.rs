//! Sources: volumes made from what lies elsewhere, and the sessions' questions to it. The driver
//! reads; here is only who asked, and what a new volume needs to know before it is agreed on.

use super::{Engine, Purpose, Work, administer::refused};
use crate::{
    Output, SourceId, SourceReply, SourceRequest, SourceWanted,
    admin::{AdminError, AdminErrorKind, AdminToken, SourcesReport},
    attach::HeldId,
    names,
};
use cluster::{Command, Durability, Map};
use proto::{
    BLOCK_SIZE, Duration, Generation, LayerId, Time,
    limits::{SOURCE_OPEN_MS_MAX, VOLUME_BYTES_MAX},
};
use volume::SourceAnswer;

/// Where a question to a source came from.
pub(super) enum SourceRoute {
    /// A session.
    Session {
        /// Whose.
        id: HeldId,
        /// Of which attachment.
        generation: Generation,
        /// That of the session's question.
        token: volume::SourceToken,
    },
    /// A volume that is to be made; its number.
    Creation(u64),
}

/// What came of the questions of sessions since the start.
#[derive(Default)]
pub(super) struct SourceCounters {
    read_bytes: u64,
    failures: u64,
}

/// How a new volume is to be kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) copies: u8,
    pub(super) min_copies: Option<u8>,
    pub(super) durability: Durability,
}

/// An administrator who waits until a source has told its size.
pub(super) struct Creation {
    token: AdminToken,
    name: String,
    /// The wanted size in bytes, if not the source's.
    bytes: Option<u64>,
    address: String,
    /// How it is to be kept, if anybody said so.
    kept: Option<Kept>,
    until: Time,
}

impl Engine {
    /// Asks the source of a new volume for its size.
    pub(super) fn begin_creation(
        &mut self,
        now: Time,
        token: AdminToken,
        (name, bytes, address): (String, Option<u64>, String),
        kept: Option<Kept>,
        outputs: &mut Vec<Output>,
    ) -> Result<(), AdminError> {
        // Before anything is asked of anybody.
        cluster::check_name(&name).map_err(|refusal| refused(&refusal))?;
        cluster::check_address(&address).map_err(|refusal| refused(&refusal))?;
        let until = now + Duration::from_millis(SOURCE_OPEN_MS_MAX);
        self.last_creation += 1;
        let number = self.last_creation;
        let creation = Creation { token, name, bytes, address: address.clone(), kept, until };
        self.creations.insert(number, creation);
        let token = SourceId(self.asked_sources.insert(SourceRoute::Creation(number)));
        let request = SourceRequest { address, wanted: SourceWanted::Open };
        outputs.push(Output::Source { token, request });
        Ok(())
    }

    /// A session asks a source.
    pub(super) fn ask_source(
        &mut self,
        (id, generation, token): (HeldId, Generation, volume::SourceToken),
        layer: LayerId,
        (offset, length, kind_only): (u64, u64, bool),
        outputs: &mut Vec<Output>,
    ) {
        let Some(source) = self.map.source(layer) else {
            let result = Err("the cluster does not know it any more".to_string());
            let event = volume::Event::Source { token, result };
            self.work.push_back(Work::Session(id, generation, event));
            return;
        };
        let bytes = source.bytes;
        let wanted = match kind_only {
            true => SourceWanted::Map { bytes, offset, length },
            false => SourceWanted::Read { bytes, offset, length },
        };
        let request = SourceRequest { address: source.address.clone(), wanted };
        let route = SourceRoute::Session { id, generation, token };
        let token = SourceId(self.asked_sources.insert(route));
        outputs.push(Output::Source { token, request });
    }

    /// The driver has an answer of a source.
    pub(super) fn handle_source(
        &mut self,
        token: SourceId,
        result: Result<SourceReply, String>,
        outputs: &mut Vec<Output>,
    ) {
        match self.asked_sources.remove(token.0) {
            SourceRoute::Session { id, generation, token } => {
                let result = result.and_then(|reply| match reply {
                    SourceReply::Answer(answer) => Ok(answer),
                    SourceReply::Opened { .. } => Err("it answered something else".to_string()),
                });
                match &result {
                    Ok(SourceAnswer::Data(content)) => {
                        self.source_counters.read_bytes += content.len() as u64;
                    }
                    Ok(SourceAnswer::Map(_)) => {}
                    Err(_) => self.source_counters.failures += 1,
                }
                let event = volume::Event::Source { token, result };
                self.work.push_back(Work::Session(id, generation, event));
            }
            SourceRoute::Creation(number) => {
                // Nobody may wait for it any more.
                let Some(creation) = self.creations.remove(&number) else { return };
                let token = creation.token;
                if let Err(error) = self.create_from(creation, result) {
                    outputs.push(Output::Admin { token, result: Box::new(Err(error)) });
                }
            }
        }
    }

    fn create_from(
        &mut self,
        creation: Creation,
        result: Result<SourceReply, String>,
    ) -> Result<(), AdminError> {
        let Creation { token, name, bytes, address, kept, .. } = creation;
        let invalid = |sentence| AdminError { kind: AdminErrorKind::Invalid, sentence };
        let (source_bytes, own_export) = match result {
            Ok(SourceReply::Opened { bytes, own_export }) => (bytes, own_export),
            Ok(SourceReply::Answer(_)) => unreachable!("it was asked for its size"),
            Err(reason) => {
                let sentence = format!("cannot make volume {name} from {address}: {reason}");
                return Err(AdminError { kind: AdminErrorKind::Unavailable, sentence });
            }
        };
        if source_bytes == 0 {
            let sentence = format!("{address} is empty; name a source that holds something");
            return Err(invalid(sentence));
        }
        if source_bytes > VOLUME_BYTES_MAX {
            let sentence = format!(
                "{address} has {source_bytes} bytes, more than the {VOLUME_BYTES_MAX} of the \
                 largest volume there is; name a smaller source"
            );
            return Err(invalid(sentence));
        }
        let block = BLOCK_SIZE as u64;
        let bytes = bytes.unwrap_or(source_bytes.div_ceil(block) * block);
        if bytes < source_bytes {
            let sentence = format!(
                "{address} has {source_bytes} bytes and the new volume would have only {bytes}; \
                 give a larger size, or none to take the source's"
            );
            return Err(invalid(sentence));
        }
        if let Some(export) = own_export {
            vet_own_export(&self.map, &export).map_err(invalid)?;
        }
        let unix_s = self.unix_s();
        let command = match kept {
            Some(kept) => {
                self.kept_creation(name.clone(), bytes, Some((address, source_bytes)), kept)
            }
            None => {
                let name = name.clone();
                Command::CreateVolumeFrom { name, bytes, address, source_bytes, unix_s }
            }
        };
        self.work.push_back(Work::Propose(command, Purpose::AdminFrom(token, name)));
        Ok(())
    }

    /// The command that makes a volume that is kept so. Nodes of before there was a choice of
    /// durability know the one for the default.
    pub(super) fn kept_creation(
        &self,
        name: String,
        bytes: u64,
        from: Option<(String, u64)>,
        Kept { copies, min_copies, durability }: Kept,
    ) -> Command {
        let unix_s = self.unix_s();
        if durability == Durability::default() {
            return Command::CreateVolumeKept { name, bytes, from, copies, min_copies, unix_s };
        }
        Command::CreateVolumeDurable { name, bytes, from, copies, min_copies, durability, unix_s }
    }

    /// What there is to tell of all sources.
    pub(super) fn sources_report(&self, now: Time) -> SourcesReport {
        let SourceCounters { read_bytes, failures } = self.source_counters;
        let mut report = SourcesReport { read_bytes, failures, ..SourcesReport::default() };
        let is_any = self.map.sources().next().is_some();
        for volume in is_any.then(|| self.map.volumes()).into_iter().flatten() {
            let origin = self.map.origin(volume.head);
            let Some(origin) = origin.filter(|origin| self.map.source(origin.layer).is_some())
            else {
                continue;
            };
            let held = self.held.get(&HeldId::Head(volume.id));
            let state = held.and_then(|held| held.session.as_ref()?.flattening());
            let done = state.map_or(0, |state| state.done_bytes).min(origin.bytes);
            report.volumes += 1;
            report.filled_bytes += done;
            report.to_fill_bytes += origin.bytes - done;
        }
        let sessions = self.held.values().filter_map(|held| held.session.as_ref());
        let troubles = sessions.filter_map(|session| session.source_trouble());
        let longest = troubles.map(|trouble| now.since(trouble.since).as_secs()).max();
        report.waiting_s = longest.unwrap_or(0);
        report
    }

    /// When an administrator has waited long enough for a source.
    pub(super) fn creations_deadline(&self) -> Option<Time> {
        self.creations.values().map(|creation| creation.until).min()
    }

    /// Answers those whose source has not told its size in time, or all.
    pub(super) fn expire_creations(&mut self, now: Option<Time>, outputs: &mut Vec<Output>) {
        let is_due = |creation: &Creation| now.is_none_or(|now| creation.until <= now);
        let due = self.creations.iter().filter(|(_, creation)| is_due(creation));
        for number in due.map(|(number, _)| *number).collect::<Vec<_>>() {
            let creation = self.creations.remove(&number).expect("listed just now");
            let sentence = match now {
                Some(_) => format!(
                    "cannot make volume {} from {}: it has not answered for {} s; see that it can \
                     be reached and try again",
                    creation.name,
                    creation.address,
                    SOURCE_OPEN_MS_MAX / 1000
                ),
                None => self.not_serving(),
            };
            let error = AdminError { kind: AdminErrorKind::Unavailable, sentence };
            let result = Box::new(Err(error));
            outputs.push(Output::Admin { token: creation.token, result });
        }
    }
}

/// Whether one of the node's own exports may be a source: none may. A volume can change, and could
/// wait for itself in a ring; and a snapshot that nobody reads at the moment could be deleted, or
/// another one of its name come, while a clone keeps what it needs.
fn vet_own_export(map: &Map, export: &str) -> Result<(), String> {
    match names::find(map, export) {
        Ok(names::Export::Snapshot { .. }) => Err(format!(
            "{export} is a snapshot of this very node; clone it with `dog volume clone {export} \
             NEW`, which is done at once, and `dog volume flatten NEW` if it is to stand alone"
        )),
        Ok(names::Export::Volume(_)) => Err(format!(
            "{export} is a volume of this very node, and can change; take a snapshot of it and \
             clone that with `dog volume clone`"
        )),
        Err(volume::Answer::Unknown { sentence } | volume::Answer::Refused { sentence }) => {
            Err(sentence)
        }
        Err(_) => Err(format!("{export} cannot be had; name another source")),
    }
}
