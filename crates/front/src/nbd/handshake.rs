//! The handshake: what the client asks before it serves itself, and how it is answered.

use super::connection::{CloseReason, Connection, Effect, Settings, State};
use super::contexts::{self, Context, Wanted};
use super::transmission::Export;
use super::wire::{
    self, Headers, InfoQuery, MetaQuery, OptionHeader, Reader, handshake_flag, info, option,
    option_reply, transmission_flag,
};
use proto::{BLOCK_SIZE, Duration, SECTOR_SIZE, Time, limits};
use volume::{Answer, Base};

/// How to name a volume, for clients that name none.
const NO_NAME: &str = "No volume is named: add its name to the address, as in \
    nbd+unix:///NAME?socket=PATH or nbd://HOST/NAME; `nbdinfo --list` shows which there are.";

/// A snapshot's export is named VOLUME@TAG.
const EXPORT_NAME_BYTES_MAX: usize = 2 * limits::VOLUME_NAME_BYTES_MAX + 1;

/// What was negotiated so far.
#[derive(Debug)]
pub struct Handshake {
    /// The client understands replies to options.
    fixed_newstyle: bool,
    /// The reply to `EXPORT_NAME` ends without padding.
    no_zeroes: bool,
    /// What the client's options and the replies to them may still take, in bytes.
    bytes_left: usize,
    /// How much its progress may still prolong the handshake.
    grace_left: Duration,
    /// How requests and replies will be headed.
    headers: Headers,
    /// The contexts that the client chose, and of which export.
    contexts_of: Option<(String, Vec<Context>)>,
    /// What was left of the handshake's time when the driver was asked.
    time_left: Duration,
}

impl Handshake {
    /// Nothing is negotiated.
    pub fn new(settings: &Settings) -> Handshake {
        let grace_ms = limits::NBD_HANDSHAKE_LOCAL_MS_MAX - limits::NBD_HANDSHAKE_MS_MAX;
        Handshake {
            fixed_newstyle: false,
            no_zeroes: false,
            bytes_left: limits::NBD_HANDSHAKE_BYTES_MAX,
            grace_left: match settings.is_local {
                true => Duration::from_millis(grace_ms),
                false => Duration::ZERO,
            },
            headers: Headers::Simple,
            contexts_of: None,
            time_left: Duration::ZERO,
        }
    }
}

/// What the driver was asked, and what of the answer the client wants to know.
#[derive(Debug)]
pub enum Question {
    /// For `LIST`.
    List,
    /// For `INFO`, or for `GO` if `go`.
    Info { go: bool, name: String, wants_name: bool, wants_block_size: bool },
    /// For `EXPORT_NAME`.
    ExportName { name: String },
    /// For `LIST_META_CONTEXT`, or for `SET_META_CONTEXT` if `sets`.
    Bases { sets: bool, name: String, wanted: Wanted },
}

impl Connection {
    pub(super) fn take_client_flags(&mut self, message: &[u8], effects: &mut Vec<Effect>) {
        let flags = Reader::new(message).u32().expect("the message is long enough");
        let fixed_newstyle = u32::from(handshake_flag::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
        if flags & !(fixed_newstyle | no_zeroes) != 0 {
            self.close(CloseReason::Protocol("unknown client flags"), effects);
            return;
        }
        self.handshake.fixed_newstyle = flags & fixed_newstyle != 0;
        self.handshake.no_zeroes = flags & no_zeroes != 0;
        self.state = State::OptionHeader;
    }

    pub(super) fn take_option_header(
        &mut self,
        now: Time,
        message: &[u8],
        effects: &mut Vec<Effect>,
    ) {
        let message = message.try_into().expect("the message has the header's length");
        let Some(header) = OptionHeader::parse(message) else {
            self.close(CloseReason::Protocol("an option without its magic"), effects);
            return;
        };
        let bytes = wire::OPTION_HEADER_BYTES + header.length as usize;
        let bytes_left = self.handshake.bytes_left.checked_sub(bytes);
        self.handshake.bytes_left = bytes_left.unwrap_or(0);
        if header.option != option::EXPORT_NAME && !self.handshake.fixed_newstyle {
            let reason = "an option that needs fixed newstyle, which the client did not choose";
            self.close(CloseReason::Protocol(reason), effects);
        } else if header.length as usize > limits::NBD_OPTION_BYTES_MAX {
            // Skipping it would be work of the client's choice, up to 4 GiB.
            let sentence = "The option is too long; shorten its names or its list of queries.";
            self.option_error(now, header.option, option_reply::ERR_TOO_BIG, sentence, effects);
            self.drain(CloseReason::Protocol("an option that is too long"));
        } else if bytes_left.is_none() {
            let sentence = "That were too many options; connect again and choose with NBD_OPT_GO.";
            self.option_error(now, header.option, option_reply::ERR_TOO_BIG, sentence, effects);
            self.drain(CloseReason::Protocol("too many options"));
        } else {
            self.state = State::OptionData(header);
        }
    }

    /// One whole option.
    pub(super) fn take_option(
        &mut self,
        now: Time,
        header: OptionHeader,
        data: &[u8],
        effects: &mut Vec<Effect>,
    ) {
        self.state = State::OptionHeader;
        self.prolong(now);
        match header.option {
            option::EXPORT_NAME => self.take_export_name(now, data, effects),
            option::ABORT => {
                self.option_reply(now, option::ABORT, option_reply::ACK, &[], effects);
                self.drain(CloseReason::Disconnected);
            }
            option::LIST
            | option::STARTTLS
            | option::STRUCTURED_REPLY
            | option::EXTENDED_HEADERS
                if !data.is_empty() =>
            {
                let sentence = "This option takes no data.";
                self.option_error(now, header.option, option_reply::ERR_INVALID, sentence, effects);
            }
            option::LIST => self.ask(now, Question::List, effects),
            option::STARTTLS => {
                let sentence = "This server does not speak TLS; connect through its local socket.";
                self.option_error(now, header.option, option_reply::ERR_UNSUP, sentence, effects);
            }
            option::STRUCTURED_REPLY if self.handshake.headers == Headers::Extended => {
                let kind = option_reply::ERR_EXTENDED_HEADERS;
                let sentence = "Extended headers are agreed on, which are more than this.";
                self.option_error(now, header.option, kind, sentence, effects);
            }
            option::STRUCTURED_REPLY => {
                self.handshake.headers = Headers::Structured;
                self.option_reply(now, header.option, option_reply::ACK, &[], effects);
            }
            option::EXTENDED_HEADERS => {
                self.handshake.headers = Headers::Extended;
                self.option_reply(now, header.option, option_reply::ACK, &[], effects);
            }
            option::INFO | option::GO => self.take_info(now, header.option, data, effects),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.take_meta_context(now, header.option, data, effects);
            }
            _ => {
                let sentence = "This server does not know the option; go on without it.";
                self.option_error(now, header.option, option_reply::ERR_UNSUP, sentence, effects);
            }
        }
    }

    /// The client has made progress: if it is local it gets the time of a new handshake, but not
    /// again and again without end.
    fn prolong(&mut self, now: Time) {
        let Some(deadline) = &mut self.handshake_deadline else { return };
        let spent = Duration::from_millis(limits::NBD_HANDSHAKE_MS_MAX) - deadline.since(now);
        let grace = spent.min(self.handshake.grace_left);
        self.handshake.grace_left -= grace;
        *deadline = *deadline + grace;
    }

    fn take_export_name(&mut self, now: Time, data: &[u8], effects: &mut Vec<Effect>) {
        if self.handshake.headers == Headers::Extended {
            let reason = "EXPORT_NAME, which clients with extended headers must not use";
            return self.close(CloseReason::Protocol(reason), effects);
        }
        match volume_name(data) {
            Ok(name) => self.ask(now, Question::ExportName { name }, effects),
            // The option knows no way to refuse but to hang up.
            Err((_, sentence)) => self.close(CloseReason::Refused(sentence.to_owned()), effects),
        }
    }

    fn take_info(&mut self, now: Time, option: u32, data: &[u8], effects: &mut Vec<Effect>) {
        let Some(query) = InfoQuery::parse(data) else {
            let sentence = "The option's lengths do not fit together.";
            self.option_error(now, option, option_reply::ERR_INVALID, sentence, effects);
            return;
        };
        match volume_name(query.name) {
            Ok(name) => {
                let InfoQuery { wants_name, wants_block_size, .. } = query;
                let go = option == option::GO;
                self.ask(now, Question::Info { go, name, wants_name, wants_block_size }, effects);
            }
            Err((kind, sentence)) => self.option_error(now, option, kind, sentence, effects),
        }
    }

    /// `base:allocation` is promised for any name without a look at the volume: `GO` decides
    /// whether it exists, and only the contexts of the name that it chooses count.
    fn take_meta_context(
        &mut self,
        now: Time,
        option: u32,
        data: &[u8],
        effects: &mut Vec<Effect>,
    ) {
        let sets = option == option::SET_META_CONTEXT;
        if sets {
            self.handshake.contexts_of = None; // also when the option fails
        }
        let refusal = if !self.handshake.headers.has_chunks() {
            Some("Metadata contexts need structured replies or extended headers; negotiate them.")
        } else {
            None
        };
        let query = MetaQuery::parse(data);
        let name = query.as_ref().and_then(|query| std::str::from_utf8(query.name).ok());
        let (Some(query), Some(name), None) = (&query, name, refusal) else {
            let sentence = refusal.unwrap_or("The option's lengths or names are not valid.");
            self.option_error(now, option, option_reply::ERR_INVALID, sentence, effects);
            return;
        };
        let wanted = if sets { Wanted::chosen(query) } else { Wanted::listed(query) };
        let name = name.to_owned();
        if wanted.needs_bases() {
            self.ask(now, Question::Bases { sets, name, wanted }, effects);
        } else {
            self.send_contexts(now, sets, name, wanted.allocation, &[], effects);
        }
    }

    /// Answers an option about contexts, now that the bases that were asked for are known.
    fn send_contexts(
        &mut self,
        now: Time,
        sets: bool,
        name: String,
        allocation: bool,
        bases: &[Base],
        effects: &mut Vec<Effect>,
    ) {
        let option = if sets { option::SET_META_CONTEXT } else { option::LIST_META_CONTEXT };
        let found = contexts::found(allocation, bases);
        if sets && found.len() > limits::NBD_CONTEXTS_MAX {
            let sentence = format!(
                "A connection has at most {} metadata contexts; choose fewer.",
                limits::NBD_CONTEXTS_MAX
            );
            self.option_error(now, option, option_reply::ERR_TOO_BIG, &sentence, effects);
            return;
        }
        self.reply(now, effects, |out| {
            for (place, context) in found.iter().enumerate() {
                let id = if sets { wire::FIRST_CONTEXT_ID + place as u32 } else { 0 };
                let data: [&[u8]; 2] = [&id.to_be_bytes(), context.name.as_bytes()];
                wire::put_option_reply(out, option, option_reply::META_CONTEXT, &data);
            }
            wire::put_option_reply(out, option, option_reply::ACK, &[]);
        });
        if sets {
            let contexts = found.iter().map(|named| named.context).collect();
            self.handshake.contexts_of = Some((name, contexts));
        }
    }

    /// Asks the driver. The client's clock stands still until the answer comes.
    fn ask(&mut self, now: Time, question: Question, effects: &mut Vec<Effect>) {
        effects.push(match &question {
            Question::List => Effect::List,
            Question::Info { go: false, name, .. } => Effect::Describe { name: name.clone() },
            Question::Info { go: true, name, .. } | Question::ExportName { name } => {
                Effect::Open { name: name.clone() }
            }
            Question::Bases { name, wanted, .. } => {
                Effect::Bases { name: name.clone(), tags: wanted.tags.clone() }
            }
        });
        if let Some(deadline) = self.handshake_deadline.take() {
            self.handshake.time_left = deadline.since(now);
        }
        self.state = State::Asking(question);
    }

    /// The driver's answer to `question`.
    pub(super) fn take_answer(
        &mut self,
        now: Time,
        question: Question,
        answer: Answer,
        effects: &mut Vec<Effect>,
    ) {
        self.handshake_deadline = Some(now + self.handshake.time_left);
        match (question, answer) {
            (Question::List, Answer::Listed(names)) => self.send_list(now, &names, effects),
            (Question::Bases { sets, name, wanted }, Answer::Bases(bases)) => {
                self.send_contexts(now, sets, name, wanted.allocation, &bases, effects);
            }
            (
                Question::Info { go: false, name, wants_name, wants_block_size },
                Answer::Described { bytes, read_only },
            ) => {
                let export = self.export_of(&name, bytes, read_only);
                let name = wants_name.then_some(name);
                self.send_info(now, option::INFO, &export, name, wants_block_size, effects);
            }
            (
                Question::Info { go: true, name, wants_name, wants_block_size },
                Answer::Opened { bytes, read_only },
            ) => {
                let export = self.export_of(&name, bytes, read_only);
                let name = wants_name.then_some(name);
                self.send_info(now, option::GO, &export, name, wants_block_size, effects);
                self.serve(export);
            }
            (Question::ExportName { name }, Answer::Opened { bytes, read_only }) => {
                let export = self.export_of(&name, bytes, read_only);
                self.send_export(now, &export, effects);
                self.serve(export);
            }
            (
                Question::ExportName { .. },
                Answer::Unknown { sentence } | Answer::Refused { sentence },
            ) => self.close(CloseReason::Refused(sentence), effects),
            (Question::Info { go, .. }, Answer::Unknown { sentence }) => {
                let option = if go { option::GO } else { option::INFO };
                self.option_error(now, option, option_reply::ERR_UNKNOWN, &sentence, effects);
            }
            (Question::Info { go, .. }, Answer::Refused { sentence }) => {
                let option = if go { option::GO } else { option::INFO };
                self.option_error(now, option, option_reply::ERR_POLICY, &sentence, effects);
            }
            (Question::List, Answer::Unknown { sentence } | Answer::Refused { sentence }) => {
                let kind = option_reply::ERR_POLICY;
                self.option_error(now, option::LIST, kind, &sentence, effects);
            }
            (question, answer) => unreachable!("{answer:?} is no answer to {question:?}"),
        }
    }

    /// The handshake is over.
    fn serve(&mut self, export: Export) {
        self.export = export;
        self.handshake_deadline = None;
        self.state = State::RequestHeader;
    }

    /// What a volume looks like with what was negotiated.
    fn export_of(&self, name: &str, bytes: u64, read_only: bool) -> Export {
        let headers = self.handshake.headers;
        let chosen = self.handshake.contexts_of.as_ref();
        let chosen = chosen.filter(|(of, _)| headers.has_chunks() && of == name);
        let contexts = chosen.map_or_else(Vec::new, |(_, contexts)| contexts.clone());
        Export { bytes, read_only, headers, contexts }
    }

    fn transmission_flags(&self, export: &Export) -> u16 {
        use transmission_flag::*;
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_CACHE;
        flags |= match export.read_only {
            true => READ_ONLY,
            false => SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO,
        };
        if export.headers.has_chunks() {
            flags |= SEND_DF;
        }
        if self.settings.can_multi_conn {
            flags |= CAN_MULTI_CONN;
        }
        flags
    }

    fn send_list(&mut self, now: Time, names: &[String], effects: &mut Vec<Effect>) {
        self.reply(now, effects, |out| {
            for name in names {
                let length = (name.len() as u32).to_be_bytes();
                let data: [&[u8]; 2] = [&length, name.as_bytes()];
                wire::put_option_reply(out, option::LIST, option_reply::SERVER, &data);
            }
            wire::put_option_reply(out, option::LIST, option_reply::ACK, &[]);
        });
    }

    fn send_info(
        &mut self,
        now: Time,
        option: u32,
        export: &Export,
        name: Option<String>,
        block_size: bool,
        effects: &mut Vec<Effect>,
    ) {
        let flags = self.transmission_flags(export);
        self.reply(now, effects, |out| {
            let mut put = |data: &[&[u8]]| {
                wire::put_option_reply(out, option, option_reply::INFO, data);
            };
            put(&[&info::EXPORT.to_be_bytes(), &export.bytes.to_be_bytes(), &flags.to_be_bytes()]);
            if let Some(name) = &name {
                put(&[&info::NAME.to_be_bytes(), name.as_bytes()]);
            }
            if block_size {
                put(&[
                    &info::BLOCK_SIZE.to_be_bytes(),
                    &(SECTOR_SIZE as u32).to_be_bytes(),
                    &(BLOCK_SIZE as u32).to_be_bytes(),
                    &(limits::NBD_PAYLOAD_BYTES_MAX as u32).to_be_bytes(),
                ]);
            }
            wire::put_option_reply(out, option, option_reply::ACK, &[]);
        });
    }

    /// The success of `EXPORT_NAME`.
    fn send_export(&mut self, now: Time, export: &Export, effects: &mut Vec<Effect>) {
        let flags = self.transmission_flags(export);
        let padding = if self.handshake.no_zeroes { 0 } else { wire::EXPORT_NAME_PADDING_BYTES };
        self.output.write(now, effects, |out| {
            out.extend(export.bytes.to_be_bytes());
            out.extend(flags.to_be_bytes());
            out.resize(out.len() + padding, 0);
        });
    }

    /// Sends what `write` appends, and counts it.
    fn reply(&mut self, now: Time, effects: &mut Vec<Effect>, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.output.unsent();
        self.output.write(now, effects, write);
        let bytes = self.output.unsent() - before;
        self.handshake.bytes_left = self.handshake.bytes_left.saturating_sub(bytes);
    }

    fn option_reply(
        &mut self,
        now: Time,
        option: u32,
        kind: u32,
        data: &[&[u8]],
        effects: &mut Vec<Effect>,
    ) {
        self.reply(now, effects, |out| wire::put_option_reply(out, option, kind, data));
    }

    fn option_error(
        &mut self,
        now: Time,
        option: u32,
        kind: u32,
        sentence: &str,
        effects: &mut Vec<Effect>,
    ) {
        self.option_reply(now, option, kind, &[wire::shortened(sentence).as_bytes()], effects);
    }
}

/// The volume or snapshot a client names, or how to refuse it.
fn volume_name(bytes: &[u8]) -> Result<String, (u32, &'static str)> {
    if bytes.is_empty() {
        return Err((option_reply::ERR_UNKNOWN, NO_NAME));
    }
    if bytes.len() > EXPORT_NAME_BYTES_MAX {
        return Err((option_reply::ERR_UNKNOWN, "No volume or snapshot has a name that long."));
    }
    match std::str::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => Ok(name.to_owned()),
        _ => Err((option_reply::ERR_INVALID, "The volume's name is not valid UTF-8 text.")),
    }
}
