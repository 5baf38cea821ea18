//! Every bound in one place, related to one another by compile-time asserts. A queue, cache, retry
//! or message without an entry here is a bug.

use crate::units::{BLOCK_SIZE, OBJECT_SIZE};

/// Largest volume, in bytes: 2^32 objects would overflow the object index, and 1 PiB is beyond
/// what one machine's disks hold today.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;
/// Smallest volume, in bytes.
pub const VOLUME_BYTES_MIN: u64 = BLOCK_SIZE as u64;
/// Volumes per cluster. The map is held in memory by every node and written whole as a snapshot.
pub const VOLUMES_MAX: usize = 65_536;
/// Snapshots per cluster, for the same reason.
pub const SNAPSHOTS_MAX: usize = 65_536;
/// Layers per cluster: the heads, the snapshots' and the hidden ones, of which each carries two
/// others, or a clone.
pub const LAYERS_MAX: usize = 2 * (VOLUMES_MAX + SNAPSHOTS_MAX);
/// Groups per cluster.
pub const GROUPS_MAX: usize = 4_096;
/// Volumes in one group: all their sessions switch in one step.
pub const GROUP_VOLUMES_MAX: usize = 128;
/// Group snapshots of all groups, each counted once for each of its volumes.
pub const GROUP_MEMBERSHIPS_MAX: usize = SNAPSHOTS_MAX;
/// Schedules of one volume.
pub const SCHEDULES_PER_VOLUME_MAX: usize = 16;
/// Schedules of all volumes together.
pub const SCHEDULES_MAX: usize = 65_536;
/// Shortest time between two snapshots of a schedule, in seconds.
pub const SCHEDULE_EVERY_S_MIN: u32 = 60;
/// Longest time between two snapshots of a schedule, in seconds: a year.
pub const SCHEDULE_EVERY_S_MAX: u32 = 366 * 24 * 3600;
/// Most snapshots that one schedule keeps.
pub const SCHEDULE_KEEP_MAX: u32 = 10_000;
/// Length of a schedule's name, in bytes: with its date behind it, it becomes a tag.
pub const SCHEDULE_NAME_BYTES_MAX: usize = 64;
/// Sources (parents elsewhere) per cluster.
pub const SOURCES_MAX: usize = 4_096;
/// Length of a source's address in bytes.
pub const SOURCE_ADDRESS_BYTES_MAX: usize = 1_024;
/// Length of a volume name, or of a snapshot's tag, in bytes. Names are printable, without '/', '@'
/// or white space.
pub const VOLUME_NAME_BYTES_MAX: usize = 255;
/// Partitions a new cluster starts with, unless it is told another power of two.
pub const PARTITIONS_DEFAULT: u32 = 4096;

/// Most binary digits of a partition number: 2^16 partitions.
pub const PARTITION_BITS_MAX: u8 = 16;
/// Nodes per cluster.
pub const NODES_MAX: usize = 1024;
/// Disks per cluster.
pub const DISKS_MAX: usize = 8192;
/// Disks of one node: each has caches of its own, and a place among the files of the ring.
pub const NODE_DISKS_MAX: usize = 64;
/// Length of a node's name in bytes.
pub const NODE_NAME_BYTES_MAX: usize = 255;
/// Addresses under which the others reach a node.
pub const NODE_ADDRESSES_MAX: usize = 4;
/// Length of one of them in bytes, with its port.
pub const NODE_ADDRESS_BYTES_MAX: usize = 128;
/// Join tokens that could still let nodes in.
pub const TOKENS_MAX: usize = 32;
/// Nodes that one join token lets in.
pub const TOKEN_USES_MAX: u32 = 64;
/// How long a join token holds, in seconds.
pub const TOKEN_SPAN_S_MAX: u64 = 31 * 24 * 3600;
/// How long a connection may take until it has shown who it is, TLS and all, in milliseconds.
pub const PEER_GREETING_MS_MAX: u64 = 10_000;
/// How long a connection from an address where no node is known may take until it has said what it
/// is for, in milliseconds.
pub const PEER_STRANGER_MS_MAX: u64 = 5_000;
/// Connections from addresses where no node is known that have not shown who they are, in all; and
/// as many more from where one is.
pub const PEER_GREETINGS_MAX: usize = 64;
/// How many such connections are looked at in a second, in all; those from where a node is known
/// are not among them.
pub const PEER_GREETINGS_PER_S_MAX: u64 = 64;
/// The same for one address, whoever is there.
pub const PEER_GREETINGS_PER_ADDRESS_PER_S_MAX: u64 = 16;
/// Connections of one address that have not shown who they are.
pub const PEER_GREETINGS_PER_ADDRESS_MAX: usize = 16;
/// How long a connection between nodes is kept after the last was said on it, in milliseconds.
pub const PEER_CLOSING_MS_MAX: u64 = 2_000;
/// How long a machine that wants to join may take to say so, in milliseconds.
pub const JOIN_REQUEST_MS_MAX: u64 = PEER_GREETING_MS_MAX;
/// How long the cluster may take to decide on it, in milliseconds.
pub const JOIN_DECIDE_MS_MAX: u64 = 30_000;
/// After how long it is refused, whatever for, in milliseconds: a machine that guesses gets no
/// further than so many guesses a second.
pub const JOIN_REFUSE_MS: u64 = 1_000;
/// Machines that the cluster decides on at once.
pub const JOINS_MAX: usize = 8;
/// Attachments of all volumes together, writers and readers.
pub const ATTACHMENTS_MAX: usize = VOLUMES_MAX;
/// Length of the text that says who holds an attachment, in bytes; longer ones are cut.
pub const HOLDER_BYTES_MAX: usize = 255;
/// One encoded command of the cluster's log, in bytes.
pub const COMMAND_BYTES_MAX: usize = 4096;
/// Proposals that wait for the log at once; more are refused.
pub const PROPOSALS_MAX: usize = 4096;
/// Bytes of log after which the cluster's state is written as a snapshot and the log cut.
pub const LOG_BYTES_BEFORE_SNAPSHOT: usize = 4 << 20;
/// The cluster's whole state as one snapshot, in bytes. It holds every volume with the longest name
/// and every attachment with the longest holder.
pub const SNAPSHOT_BYTES_MAX: usize = 128 << 20;
/// Records that one append brings to the journal, in bytes, with what their lengths take.
pub const JOURNAL_APPEND_BYTES_MAX: usize = 1 << 20;
/// A snapshot in the journal, in bytes: the state and what the voter puts around it.
pub const JOURNAL_SNAPSHOT_BYTES_MAX: usize = SNAPSHOT_BYTES_MAX + VOTER_HEAD_BYTES_MAX;
/// What a voter puts around the state in a snapshot, in bytes: members, sessions, and the entries
/// behind the snapshot.
pub const VOTER_HEAD_BYTES_MAX: usize = VOTER_TAIL_BYTES_MAX + (1 << 20);
/// The entries that are in the log behind a snapshot, in bytes; with more there is none.
pub const VOTER_TAIL_BYTES_MAX: usize = 4 << 20;
/// Entries that a voter keeps in memory though they are in its snapshot, for members that are a
/// little behind.
pub const LOG_ENTRIES_KEPT: usize = 1024;
/// For how long a node that stops waits until it is agreed that it has nothing attached any more,
/// in milliseconds. Where there is no majority that is made up for when it starts again.
pub const STOP_AGREED_MS_MAX: u64 = 5_000;
/// How often a voter is told that time passes, in milliseconds.
pub const VOTER_TICK_MS: u64 = 100;
/// Voters of a cluster, the most there can be.
pub const VOTERS_MAX: usize = 7;
/// Nodes that follow the log without a vote.
pub const LEARNERS_MAX: usize = 30;
/// How far a recovery from a lost majority jumps over every number that the lost part of the log
/// may have issued: one number a microsecond takes twelve days.
pub const RECOVERY_JUMP: u64 = 1 << 40;
/// Recoveries of one cluster.
pub const RECOVERIES_MAX: usize = 64;
/// A node that starts and is told that it was given up waits so long for others to lead it, in
/// milliseconds; then it ends.
pub const GIVEN_UP_WAIT_MS: u64 = 5_000;
/// Members whose applied proposals are remembered, those that left among them.
pub const SESSIONS_MAX: usize = 4 * NODES_MAX;
/// One message between members, in bytes.
pub const VOTER_MESSAGE_BYTES_MAX: usize = 512 << 10;
/// A piece of a snapshot on its way to another member, in bytes.
pub const VOTER_CHUNK_BYTES_MAX: usize = 256 << 10;
/// Proposals of one node that are on their way to the leader at once, and their bytes.
pub const FORWARDED_PROPOSALS_MAX: usize = 64;
/// See [`FORWARDED_PROPOSALS_MAX`].
pub const FORWARDED_BYTES_MAX: usize = 256 << 10;
/// How often a node reads its journal again to find rot while the second copy is good, in seconds.
pub const JOURNAL_VERIFY_INTERVAL_S: u64 = 3600;
/// What the journal takes behind a snapshot, in bytes: several times what makes the voter take the
/// next one, in case that fails for want of space.
pub const JOURNAL_LOG_BYTES_MAX: usize = 16 << 20;

/// Largest member request, in blocks: the session splits longer ones. Bounds a log record.
pub const MEMBER_REQUEST_BLOCKS_MAX: u32 = 256;
/// Member requests a store holds at once; the session waits beyond that.
pub const STORE_REQUESTS_MAX: usize = 4096;
/// Bytes of data a store leaves without a flush; beyond that it flushes by itself. Bounds what
/// opening the disk after a crash has to read and verify.
pub const STORE_UNFLUSHED_BYTES_MAX: u64 = 256 << 20;
/// How long a store leaves a change without a flush, in milliseconds.
pub const STORE_FLUSH_INTERVAL_MS: u64 = 5_000;
/// How long new data that finds no space waits while something is being deleted, from one step of
/// that to the next, in milliseconds.
pub const STORE_SPACE_WAIT_MS: u64 = 10_000;
/// How soon after a flush the log says what is durable, in milliseconds, when nothing else is
/// written to it.
pub const STORE_TELL_DURABLE_MS: u64 = 100;
/// How soon it is looked after damage that was found, in milliseconds.
pub const MEND_LOOK_MS: u64 = 200;
/// How long one mend of a damage from a peer may take, in milliseconds.
pub const MEND_MS_MAX: u64 = 60_000;
/// From the beginning of one scrub pass to that of the next, in seconds, unless it takes longer.
pub const STORE_SCRUB_PAUSE_S: u64 = 24 * 3600;
/// How often the scrub notes in the log how far it came, in seconds.
pub const STORE_SCRUB_RECORD_S: u64 = 30;
/// Guest requests one session works on at once; more wait in the front, which stops reading.
pub const SESSION_REQUESTS_MAX: usize = 1024;
/// Bytes of payload one session holds at once, reads and writes together.
pub const SESSION_BYTES_MAX: usize = 256 << 20;
/// Longest read or write of a guest that a session takes, in bytes.
pub const REQUEST_BYTES_MAX: usize = 64 << 20;
/// Object requests of one session in flight at once; more wait in the session.
pub const SESSION_PIECES_MAX: usize = 1024;
/// Object requests in flight for one guest request: a discard of everything must leave room.
pub const REQUEST_PIECES_MAX: usize = 64;
/// Runs of equal state in one answer to a status request.
pub const STATUS_EXTENTS_MAX: usize = 4096;
/// Objects one status request looks at; the answer covers only those if it asks about more.
pub const STATUS_OBJECTS_MAX: u64 = 1024;
/// Snapshots that a front is told of when it asks what a volume can be compared with; older ones
/// are to be asked for by their tags. A client that lists all there is hears them of each export.
pub const BASES_LISTED_MAX: usize = 32;
/// Disks that may hold one partition, current members and recovering ones.
pub const MEMBERS_MAX: usize = 8;
/// Most copies that a volume may be kept in.
pub const COPIES_MAX: u8 = 5;
/// Copies that a volume is kept in unless it is told otherwise, as soon as there are so many disks.
pub const COPIES_DEFAULT: u8 = 3;
/// Length of a zone's name, in bytes.
pub const ZONE_NAME_BYTES_MAX: usize = 64;
/// Partitions whose members one command changes.
pub const PARTITIONS_PER_COMMAND_MAX: usize = 256;
/// Disks that one attempt to change members wants.
pub const ATTEMPT_DISKS_MAX: usize = 128;
/// Attempts to change members that are under way at once.
pub const ATTEMPTS_MAX: usize = 256;
/// Objects whose stamp a session remembers; beyond, stamps of idle objects are asked for again.
pub const SESSION_STAMPS_MAX: usize = 1 << 20;
/// Questions in flight to a disk that was opened anew, or while an attachment opens.
pub const MEMBER_CHECKS_MAX: usize = 64;
/// After how long a busy disk is asked again, in milliseconds.
pub const MEMBER_RETRY_MS: u64 = 5;
/// After how long a disk that did not serve is asked whether it does again, in milliseconds.
pub const PEER_PROBE_MS: u64 = 1_000;
/// Partitions that one request about a change of members names.
pub const BATCH_PARTITIONS_MAX: usize = 256;
/// Fences that one request raises.
pub const INSTALL_FENCES_MAX: usize = 1024;
/// Rows of one answer to a question for fences, refusals, lineages or objects.
pub const MEMBER_ROWS_MAX: usize = 1024;
/// Questions that the copying of one object has under way: with the longest reads, the object.
pub const COPY_QUESTIONS_MAX: usize = 8;
/// How often the copying of one object begins anew because the target has lost what was staged.
pub const COPY_RESTARTS_MAX: u32 = 4;
/// Objects that an opening session makes equal on its disks at a time.
pub const OPENING_COPIERS_MAX: usize = 16;
/// How long a session that opens waits for members beyond a quorum, in milliseconds.
pub const OPENING_WAIT_MS: u64 = 200;
/// Bytes of writes that a session keeps in memory for one disk that does not take them; beyond,
/// the disk is behind. As much as a fast disk takes in a moment, and a short absence fits.
pub const SESSION_BEHIND_BYTES_MAX: usize = 16 << 20;
/// Writes that a session keeps in memory for one disk that does not take them.
pub const SESSION_BEHIND_WRITES_MAX: usize = 16_384;
/// Writes above the settled point after which a session flushes by itself: a new session looks at
/// the objects of all of them.
pub const SESSION_UNSETTLED_MAX: u64 = 65_536;
/// After how long a read that a disk has not answered is asked of another one, in milliseconds.
pub const READ_HEDGE_MS: u64 = 500;
/// Objects that one attempt to change members copies at a time.
pub const ATTEMPT_COPIERS_MAX: usize = 16;
/// Questions that one attempt has under way, without those of its copiers.
pub const ATTEMPT_QUESTIONS_MAX: usize = 64;
/// A pass over the newcomers of an attempt that copies no more than so many pieces of objects is
/// the last before the members refuse: it is what sessions wait for then.
pub const ATTEMPT_SHORT_PASS: usize = 64;
/// Passes after which the members refuse in any case.
pub const ATTEMPT_PASSES_MAX: u32 = 16;
/// After how long an attempt asks again a disk that does not answer, in milliseconds.
pub const ATTEMPT_RETRY_MS: u64 = 100;
/// How often a node looks whether the members of partitions should change.
pub const STEWARD_LOOK_MS: u64 = 500;
/// How long a disk may be away before the partitions that it holds go on without it, in
/// milliseconds.
pub const STEWARD_MOMENT_MS: u64 = 5_000;
/// How long an attempt to change members waits for a disk that is away once guests wait for the
/// attempt, in milliseconds: then another one is begun without that disk.
pub const ATTEMPT_STALL_MS: u64 = 250;
/// How often a node looks for such disks then, in milliseconds.
pub const ATTEMPT_LOOK_MS: u64 = 100;
/// How long a disk may be away before what it holds is built anew on others, in milliseconds,
/// unless something else is set: ten minutes, in which most machines start again.
pub const STEWARD_GRACE_MS: u64 = 600_000;
/// Attempts under way at once that only leave members out or list them anew.
pub const STEWARD_URGENT_MAX: usize = 16;
/// Attempts under way at once that copy to newcomers.
pub const STEWARD_COPYING_MAX: usize = 4;
/// Partitions of one attempt that copies to newcomers: each batch counts when it is done.
pub const STEWARD_COPYING_PARTITIONS_MAX: usize = 32;
/// Objects of one disk for which content may be staged at a time.
pub const STAGED_OBJECTS_MAX: usize = 64;
/// After how long the discard that a shrink left is tried again when it failed, in milliseconds.
pub const SHRINK_RETRY_MS: u64 = 1_000;
/// After how long a new head is reported again while the map does not show it as opened, in
/// milliseconds.
pub const SEAL_RETRY_MS: u64 = 1_000;
/// After how long a session reports again, while the map waits for it, that all it acknowledges is
/// stable, in milliseconds.
pub const STABLE_RETRY_MS: u64 = 1_000;
/// Parts of one object request that are asked for at once where another lineage shows through.
pub const THROUGH_PIECES_MAX: usize = 8;
/// Other lineages that a volume may read through before its chain is shortened: each costs one more
/// question for what only the last one has.
pub const CHAIN_LINEAGES_MAX: usize = 4;
/// Of what shows through a volume, shortening copies at most one part in so many to end as deep as
/// it can: that much nobody misses.
pub const SHORTEN_FREELY: u64 = 8;
/// The same to bring a chain to `CHAIN_LINEAGES_MAX`. More would be a copy that nobody asked for.
pub const SHORTEN_AT_MOST: u64 = 2;
/// Shortening takes at most one part in so many of the space that is left.
pub const SHORTEN_SPACE_SHARE: u64 = 4;
/// Looking for what is to be copied counts as one part in so many of copying it, where most of it
/// is not there.
pub const SHORTEN_LOOK_SHARE: u64 = 16;
/// Parts of a volume that a flatten copies at once, each at most one member request long.
pub const FLATTEN_PIECES_MAX: usize = 8;
/// After how long the end of a flatten is reported again while the map does not show it, in
/// milliseconds.
pub const FLATTEN_RETRY_MS: u64 = 1_000;
/// How long a session that is to close waits for disks that are out of service, in milliseconds.
pub const CLOSE_STALLED_MS_MAX: u64 = 10_000;

/// Body of one frame between nodes, in bytes.
pub const WIRE_BODY_BYTES_MAX: usize = 64_000;
/// Body of a hello in any version to come, in bytes.
pub const WIRE_HELLO_BYTES_MAX: usize = 1024;
/// Sentence of a goodbye or a refusal between nodes, in bytes; longer ones are cut.
pub const WIRE_TEXT_BYTES_MAX: usize = 512;
/// One control message (Raft) between nodes, in bytes, its version included.
pub const WIRE_CONTROL_BYTES_MAX: usize = 1 << 20;
/// Disks of one node that promise something in one frame.
pub const WIRE_PROMISES_MAX: usize = 256;
/// Requests that a node lets one peer have in flight.
pub const LINK_REQUESTS_MAX: u32 = 1024;
/// Bytes of blocks that a node lets one peer have in flight, in requests and answers together.
pub const LINK_BYTES_MAX: u32 = 64 << 20;
/// Requests that a node keeps for one peer, sent or not; more are answered "busy".
pub const LINK_PENDING_MAX: usize = 4096;
/// What a node grants all its peers together, in bytes, both connections of a break counted: where
/// they are so many that each would get less than [`LINK_BYTES_MIN`], it is more.
pub const LINKS_BYTES_MAX: u64 = 512 << 20;
/// What a node grants each peer at least, in bytes.
pub const LINK_BYTES_MIN: u64 = 4 << 20;
/// The part of a peer's credit that one of its disks may use is one over this.
pub const LINK_DISK_SHARE_DIVISOR: u64 = 2;
/// Output of one link beyond which no further request is put to it, in bytes: a beat must not wait
/// behind a whole credit of writes.
pub const LINK_OUTPUT_BYTES_MAX: usize = 4 << 20;
/// Bytes a driver hands to a link at once.
pub const LINK_INPUT_BYTES_MAX: usize = 256 << 10;
/// Control messages that wait in one link; more are dropped.
pub const LINK_CONTROL_QUEUE_MAX: usize = 1024;
/// Bytes of control messages that wait in one link; more are dropped.
pub const LINK_CONTROL_QUEUE_BYTES_MAX: usize = 8 << 20;
/// Beats of one link whose promise is still believed when it comes.
pub const LINK_BEATS_KEPT_MAX: usize = 8;
/// Replaced instances of a peer that are recognised when they come back.
pub const LINK_INSTANCES_KEPT_MAX: usize = 16;
/// How long dialling a peer may take, in milliseconds.
pub const LINK_CONNECT_MS_MAX: u64 = 5_000;
/// How long a peer may take over its hello, in milliseconds.
pub const LINK_HELLO_MS_MAX: u64 = 10_000;
/// How long a peer may take over the rest of a frame it began, in milliseconds.
pub const LINK_FRAME_MS_MAX: u64 = 5_000;
/// How long a peer may send nothing, in milliseconds. It beats much more often.
pub const LINK_SILENT_MS_MAX: u64 = 2_000;
/// How long output may wait for a peer that does not read it, in milliseconds.
pub const LINK_STALL_MS_MAX: u64 = 5_000;
/// How often a link beats, in milliseconds.
pub const LINK_BEAT_MS: u64 = 250;
/// After how long a peer is dialled again, in milliseconds; twice as long each time.
pub const LINK_RETRY_MS: u64 = 100;
/// The longest such time, in milliseconds.
pub const LINK_RETRY_MS_MAX: u64 = 5_000;
/// How long a connection must last for the next one to be tried after the shortest time, in
/// milliseconds.
pub const LINK_STEADY_MS: u64 = 10_000;

/// Longest NBD read or write, in bytes: what QEMU and libnbd take as the default maximum.
pub const NBD_PAYLOAD_BYTES_MAX: usize = 32 << 20;
/// Longest NBD option, in bytes.
pub const NBD_OPTION_BYTES_MAX: usize = 8192;
/// What the options of one NBD client and the replies to them may take before it must decide, in
/// bytes: `nbdinfo --list` asks for all names, and then two or three things about each.
pub const NBD_HANDSHAKE_BYTES_MAX: usize = 2 << 30;
/// Replies to options an NBD client may leave unread before its next option waits, in bytes.
pub const NBD_OPTION_UNREAD_BYTES_MAX: usize = 64 << 10;
/// Bytes a driver hands to an NBD connection at once. What cannot be worked on yet is kept.
pub const NBD_INPUT_BYTES_MAX: usize = 256 << 10;
/// What one NBD request discards, zeroes or prefetches before the rest of it is begun, in bytes: as
/// much as a client without extended headers can say at once. It bounds how long a stop, the end of
/// a connection or a snapshot waits for it.
pub const NBD_STEP_BYTES_MAX: u64 = 1 << 32;
/// Extents in one reply to NBD's block status; the client asks again for the rest.
pub const NBD_STATUS_EXTENTS_MAX: usize = 8192;
/// Metadata contexts that one NBD connection may have.
pub const NBD_CONTEXTS_MAX: usize = 8;
/// How long an NBD client may take over the handshake, in milliseconds.
pub const NBD_HANDSHAKE_MS_MAX: u64 = 10_000;
/// How long a client of the Unix socket may take over the handshake if none of its options takes
/// more than `NBD_HANDSHAKE_MS_MAX`, in milliseconds: asking about each of very many volumes.
pub const NBD_HANDSHAKE_LOCAL_MS_MAX: u64 = 600_000;
/// How long an NBD client may take over the rest of a request it began, in milliseconds.
pub const NBD_REQUEST_MS_MAX: u64 = 30_000;
/// How long replies may wait for an NBD client that does not read them, in milliseconds.
pub const NBD_WRITE_STALL_MS_MAX: u64 = 60_000;
/// Requests of one NBD connection in flight; the connection is not read beyond that.
pub const NBD_REQUESTS_PER_CONNECTION_MAX: usize = 256;
/// Bytes of payload one NBD connection holds at once; the connection is not read beyond that.
pub const NBD_BYTES_PER_CONNECTION_MAX: usize = 64 << 20;
/// NBD connections in all.
pub const NBD_CONNECTIONS_MAX: usize = 1024;
/// NBD connections of one client (peer process or address) that have not finished the handshake.
pub const NBD_HANDSHAKES_PER_CLIENT_MAX: usize = 32;
/// NBD connections of one client (peer process or address).
pub const NBD_CONNECTIONS_PER_CLIENT_MAX: usize = 128;

/// Content of one record in a stream of changes, in bytes: what a receiver holds until it has
/// verified it.
pub const DIFF_RECORD_BYTES_MAX: usize = 1 << 20;
/// Head of a stream of changes, in bytes: its numbers, and three names.
pub const DIFF_HEADER_BYTES_MAX: usize = 1024;

/// Map pages cached per disk unless told otherwise, in bytes.
pub const MAP_CACHE_BYTES_DEFAULT: usize = 256 << 20;
/// Least map cache, in bytes.
pub const MAP_CACHE_BYTES_MIN: usize = 4 << 20;

/// Operations on media that the kernel works on at once; more wait in the driver.
pub const DISK_OPERATIONS_IN_FLIGHT_MAX: usize = 1024;
/// Bytes one system call reads or writes at most; longer operations go in several.
pub const DISK_STEP_BYTES_MAX: usize = 256 << 20;

/// Open files and sockets a daemon wants to be allowed: all connections, media, and some to spare.
pub const DESCRIPTORS_WANTED: u64 = 4096;

/// Longest request of an administrator, in bytes: a name and some numbers.
pub const ADMIN_REQUEST_BYTES_MAX: usize = 64 << 10;
/// Longest answer to an administrator, in bytes: all layers, or all volumes.
pub const ADMIN_REPLY_BYTES_MAX: usize = 256 << 20;
/// Requests of administrators in flight; more are answered "busy".
pub const ADMIN_REQUESTS_MAX: usize = 64;
/// Those of them that change something. They may have to wait, and the others tell for what.
pub const ADMIN_CHANGES_MAX: usize = ADMIN_REQUESTS_MAX / 2;
/// HTTP connections, admin socket and metrics together.
pub const ADMIN_CONNECTIONS_MAX: usize = 256;
/// How long an HTTP client may take to send a request, in milliseconds.
pub const ADMIN_READ_MS_MAX: u64 = 10_000;
/// How long an administrator's request may take, in milliseconds: shrinking a big volume.
pub const ADMIN_ANSWER_MS_MAX: u64 = 600_000;
/// How long what is answered from memory may take, in milliseconds, on however busy a machine: a
/// daemon that says nothing for so long hangs.
pub const ADMIN_QUESTION_MS_MAX: u64 = 20_000;

/// Volumes that a node holds by itself at once to finish a snapshot, a rollback or a shrink; more
/// wait for their turn.
pub const NODE_FINISHES_MAX: usize = 16;
/// Volumes that a node holds by itself at once to flatten them; more wait for their turn.
pub const NODE_FLATTENS_MAX: usize = 4;
/// Volumes whose chain of clones a node shortens at once, whoever has them: each may take a share
/// of the space that is left, and none knows what the others will still take.
pub const NODE_SHORTENS_MAX: usize = 2;
/// After how long a node tries again to hold a volume when it was refused, in milliseconds.
pub const NODE_HOLD_RETRY_MS: u64 = 1_000;
/// How often a node looks after flattenings that came to a halt, in milliseconds.
pub const FLATTEN_LOOK_MS: u64 = 30_000;
/// How long the answer to a snapshot or a rollback waits for the disks, in milliseconds. It goes on
/// without the asker then.
pub const SEAL_ANSWER_MS_MAX: u64 = 30_000;
/// How long the answer to a change of what acknowledgements promise waits for the session of the
/// volume, in milliseconds. It holds without the asker then, once that session has it.
pub const STABLE_ANSWER_MS_MAX: u64 = 30_000;

/// Snapshots of schedules that are proposed at once; more wait.
pub const SCHEDULED_SNAPSHOTS_IN_FLIGHT_MAX: usize = 16;
/// Snapshots beyond what schedules keep that are proposed to be deleted at once; more wait.
pub const SCHEDULED_DROPS_IN_FLIGHT_MAX: usize = 16;
/// After how long the snapshot of a slot is tried again when it could not be taken, in
/// milliseconds; twice as long each time.
pub const SCHEDULE_RETRY_MS: u64 = 1_000;
/// The longest such time, in milliseconds.
pub const SCHEDULE_RETRY_MS_MAX: u64 = 60_000;
/// Trials in vain after which `dog status` warns though a slot may still get its snapshot: half a
/// minute.
pub const SCHEDULE_TRIALS_UNTOLD_MAX: u32 = 5;
/// Tags that are tried for the snapshot of a slot while each is taken by somebody's own snapshot.
pub const SCHEDULED_TAG_TRIALS_MAX: u32 = 100;
/// Schedules with problems that `dog status` names; `dog schedule list` shows all.
pub const SCHEDULE_WARNINGS_MAX: usize = 16;
/// Longest time a volume is kept in the trash, in seconds: ten years.
pub const TRASH_KEEP_S_MAX: u64 = 10 * 366 * 24 * 3600;
/// How long after its start a node leaves what has expired in the trash, in seconds: if its clock
/// was wrong then, somebody may still notice.
pub const TRASH_START_GRACE_S: u64 = 600;
/// Volumes that a node takes out of the trash for good at once; more wait for their turn.
pub const TRASH_PURGES_MAX: usize = 16;
/// After how long a node tries again to empty the trash when it was refused, in milliseconds.
pub const TRASH_RETRY_MS: u64 = 5_000;
/// How long a node goes without looking whether something in the trash has expired, in seconds.
pub const TRASH_LOOK_S_MAX: u64 = 3_600;
/// What is in the trash gives way when less than this part of a disk is left for new data, ...
pub const TRASH_ROOM_DIVISOR: u64 = 32;
/// ... and more than so many bytes are never kept free for that.
pub const TRASH_ROOM_BYTES_MAX: u64 = 1 << 30;
/// At least so many are: the longest write of new data fits, while the next is on its way.
pub const TRASH_ROOM_BYTES_MIN: u64 = 2 * MEMBER_REQUEST_BLOCKS_MAX as u64 * BLOCK_SIZE as u64;
/// Ids shown of those in the trash that had the same name.
pub const TRASH_IDS_SHOWN_MAX: usize = 16;
/// How long a status tells of the last volume that gave way, in seconds.
pub const TRASH_GAVE_WAY_SHOWN_S: u64 = 24 * 3600;
/// Longest time a snapshot is locked for by one command, in seconds: a hundred years.
pub const SNAPSHOT_LOCK_S_MAX: u64 = 36_525 * 24 * 3600;
/// Guests that one snapshot freezes at most.
pub const FREEZE_GUESTS_MAX: usize = 64;
/// How long guests may stand still for a snapshot at most, whatever was asked for, in milliseconds.
pub const FREEZE_MS_MAX: u64 = 300_000;
/// How long a guest's socket has to greet before it is taken for an agent's, in milliseconds:
/// QEMU's monitor does so at once.
pub const FREEZE_GREETING_MS: u64 = 500;
/// How long one attempt to let a guest go on may take before the next, in milliseconds.
pub const FREEZE_ATTEMPT_MS: u64 = 5_000;
/// How long there is between two attempts to reach a guest, in milliseconds.
pub const FREEZE_CONNECT_RETRY_MS: u64 = 100;
/// How long it is tried to let a guest go on that does not answer, in milliseconds: a day.
pub const FREEZE_RELEASE_MS_MAX: u64 = 86_400_000;
/// How long `dog` itself waits for the word that a guest goes on, in milliseconds.
pub const FREEZE_RELEASE_WAIT_MS: u64 = 15_000;
/// Longest message of a guest's agent or monitor, in bytes.
pub const FREEZE_MESSAGE_BYTES_MAX: usize = 1 << 20;
/// What a flatten may copy at once after a rest, in milliseconds of its rate.
pub const FILL_BURST_MS: u64 = 250;
/// How often it is looked how fast a flatten goes, in milliseconds.
pub const FILL_MEASURE_MS: u64 = 2_000;
/// Pieces of sources that one session asks for at once, each at most one member request long; more
/// wait in the session. The background takes at most half.
pub const SOURCE_PIECES_MAX: usize = 16;
/// Guests' requests of one session that wait for sources and hold a place in its other limits
/// meanwhile; more are put off, and hold none.
pub const SOURCE_WAITING_REQUESTS_MAX: usize = 64;
/// What these hold, in bytes, unless it is one request alone.
pub const SOURCE_WAITING_BYTES_MAX: usize = 64 << 20;
/// How many object requests they have, unless it is one request alone.
pub const SOURCE_WAITING_PIECES_MAX: usize = 256;
/// After how long a source that failed is asked again, in milliseconds.
pub const SOURCE_RETRY_MS: u64 = 1_000;
/// How long a new volume waits for its source to tell its size, in milliseconds.
pub const SOURCE_OPEN_MS_MAX: u64 = 20_000;
/// How long a source may take to let itself be connected to, and over each step of greeting, in
/// milliseconds.
pub const SOURCE_CONNECT_MS_MAX: u64 = 5_000;
/// How long a source that is asked may send nothing before the connection is given up, in
/// milliseconds.
pub const SOURCE_SILENT_MS_MAX: u64 = 15_000;
/// How long a connection to a source is kept while nothing is asked of it, in milliseconds.
pub const SOURCE_IDLE_MS: u64 = 30_000;
/// Sources that one node reads at once, each by a thread of its own.
pub const SOURCE_READERS_MAX: usize = 64;
/// Questions to one source that are with its thread at once; more wait in the engine.
pub const SOURCE_QUESTIONS_MAX: usize = 32;
/// Answers of sources that the node has not taken in yet; readers wait beyond that.
pub const SOURCE_ANSWERS_MAX: usize = 64;

/// Connections that wait for one volume which its last client is just giving back.
pub const OPENS_WAITING_MAX: usize = 128;
/// How long who wants a volume waits for another node to give it back before it is refused, in
/// milliseconds.
pub const OPEN_TURN_MS_MAX: u64 = 5_000;

/// How many questions for names that a node does not know wait at once until it knows what was
/// agreed; beyond that they are answered by what it knows.
pub const LOOKUPS_MAX: usize = 1024;
/// How long such a question waits at most, in milliseconds.
pub const LOOKUP_MS_MAX: u64 = 5_000;
/// The shortest time between two proposals that a node makes for such questions, in milliseconds.
pub const LOOKUP_PAUSE_MS: u64 = 50;

const _: () = assert!(VOLUME_BYTES_MAX / OBJECT_SIZE as u64 <= u32::MAX as u64);
const _: () = assert!(NBD_PAYLOAD_BYTES_MAX + 2 * BLOCK_SIZE <= NBD_BYTES_PER_CONNECTION_MAX);
const _: () = assert!(NBD_OPTION_BYTES_MAX <= NBD_INPUT_BYTES_MAX);
const _: () = assert!(NBD_HANDSHAKE_MS_MAX < NBD_HANDSHAKE_LOCAL_MS_MAX);
const _: () = assert!(
    // Of each export the name five times in questions and replies, and what stands around it; and
    // the contexts of its snapshots.
    (VOLUMES_MAX + SNAPSHOTS_MAX)
        * (5 * (2 * VOLUME_NAME_BYTES_MAX + 128)
            + 1024
            + BASES_LISTED_MAX * (VOLUME_NAME_BYTES_MAX + 64))
        <= NBD_HANDSHAKE_BYTES_MAX
);
const _: () = assert!(NBD_BYTES_PER_CONNECTION_MAX <= SESSION_BYTES_MAX);
const _: () = assert!(STATUS_EXTENTS_MAX <= NBD_STATUS_EXTENTS_MAX);
// A block status counts with the longest replies it may bring, and must still be admitted.
const _: () =
    assert!(NBD_CONTEXTS_MAX * (NBD_STATUS_EXTENTS_MAX * 16 + 64) <= NBD_BYTES_PER_CONNECTION_MAX);
const _: () = assert!(NBD_PAYLOAD_BYTES_MAX <= REQUEST_BYTES_MAX);
const _: () = assert!(NBD_PAYLOAD_BYTES_MAX as u64 <= NBD_STEP_BYTES_MAX);
const _: () = assert!(NBD_STEP_BYTES_MAX.is_multiple_of(BLOCK_SIZE as u64));
const _: () = assert!(REQUEST_BYTES_MAX <= SESSION_BYTES_MAX);
const _: () = assert!(SESSION_PIECES_MAX <= STORE_REQUESTS_MAX);
const _: () = assert!(REQUEST_PIECES_MAX < SESSION_PIECES_MAX);
const _: () = assert!(NBD_REQUESTS_PER_CONNECTION_MAX <= SESSION_REQUESTS_MAX);
const _: () = assert!(MEMBER_REQUEST_BLOCKS_MAX as usize * BLOCK_SIZE <= OBJECT_SIZE);
const _: () = assert!(NBD_HANDSHAKES_PER_CLIENT_MAX <= NBD_CONNECTIONS_PER_CLIENT_MAX);
const _: () = assert!(LAYERS_MAX * 1024 <= ADMIN_REPLY_BYTES_MAX);
const _: () = assert!(VOLUMES_MAX * 4096 <= ADMIN_REPLY_BYTES_MAX);
const _: () = assert!(
    GROUPS_MAX * GROUP_VOLUMES_MAX * (VOLUME_NAME_BYTES_MAX + 8) + GROUP_MEMBERSHIPS_MAX * 1024
        <= ADMIN_REPLY_BYTES_MAX
);
const _: () = assert!(PARTITIONS_DEFAULT.is_power_of_two());
const _: () = assert!(PARTITIONS_DEFAULT <= 1 << PARTITION_BITS_MAX);
const _: () = assert!(
    // Beside each text what the numbers around it take at most, with some to spare.
    VOLUMES_MAX * (VOLUME_NAME_BYTES_MAX + 112)
        + ATTACHMENTS_MAX * (HOLDER_BYTES_MAX + 48)
        + SNAPSHOTS_MAX * (VOLUME_NAME_BYTES_MAX + SCHEDULE_NAME_BYTES_MAX + 56)
        + SCHEDULES_MAX * (SCHEDULE_NAME_BYTES_MAX + 32)
        + GROUPS_MAX * (VOLUME_NAME_BYTES_MAX + 32 + GROUP_VOLUMES_MAX * 10)
        // A group snapshot has a tag, and at least one member.
        + GROUP_MEMBERSHIPS_MAX * (VOLUME_NAME_BYTES_MAX + 48)
        + SOURCES_MAX * (SOURCE_ADDRESS_BYTES_MAX + 32)
        // A layer, and how its lineage is kept if it is the first of one, with ids up to 2^42.
        + LAYERS_MAX * (28 + 12)
        + NODES_MAX * (NODE_NAME_BYTES_MAX + ZONE_NAME_BYTES_MAX + 128)
        + NODES_MAX * (NODE_ADDRESSES_MAX * (NODE_ADDRESS_BYTES_MAX + 2) + 32)
        + DISKS_MAX * 128
        + TOKENS_MAX * (64 + TOKEN_USES_MAX as usize * 52)
        // A table for each number of copies. Of each partition its run, its number and whether it
        // may be refused, and of each member which disk and how many openings ago: this many bytes
        // are enough for a partition that was changed 2^34 times, with members of 2^21 openings
        // ago.
        + COPIES_MAX as usize * (1 << PARTITION_BITS_MAX) * (11 + COPIES_MAX as usize * 5)
        // An attempt has an owner, and its partitions have its number, the disks that are wanted,
        // and members that recover.
        + ATTEMPTS_MAX * (64 + PARTITIONS_PER_COMMAND_MAX * (10 + COPIES_MAX as usize * 8))
        <= SNAPSHOT_BYTES_MAX
);
const _: () = assert!(
    // An id and a number take 29 bytes at most, a partition with a configuration's number 13: all
    // the partitions of an attempt fit if they want the same members.
    ATTEMPT_DISKS_MAX * 29 + 64 <= COMMAND_BYTES_MAX
        && PARTITIONS_PER_COMMAND_MAX * 13 + MEMBERS_MAX * 19 + 64 <= COMMAND_BYTES_MAX
        && PARTITIONS_PER_COMMAND_MAX <= BATCH_PARTITIONS_MAX
);
const _: () = assert!(NODE_ADDRESSES_MAX * (NODE_ADDRESS_BYTES_MAX + 2) + 64 <= COMMAND_BYTES_MAX);
const _: () = assert!(STEWARD_URGENT_MAX + STEWARD_COPYING_MAX <= ATTEMPTS_MAX);
const _: () = assert!(STEWARD_MOMENT_MS < STEWARD_GRACE_MS);
const _: () = assert!(ATTEMPT_LOOK_MS < ATTEMPT_STALL_MS && ATTEMPT_STALL_MS < STEWARD_MOMENT_MS);
const _: () = assert!(COPIES_DEFAULT <= COPIES_MAX && (COPIES_MAX as usize) < MEMBERS_MAX);
const _: () = assert!(
    2 * VOLUME_NAME_BYTES_MAX
        + HOLDER_BYTES_MAX
        + NODE_NAME_BYTES_MAX
        + SOURCE_ADDRESS_BYTES_MAX
        + SCHEDULE_NAME_BYTES_MAX
        + 256
        <= COMMAND_BYTES_MAX
);
const _: () = assert!(3 * VOLUME_NAME_BYTES_MAX + 128 <= DIFF_HEADER_BYTES_MAX);
// It is kept in one block while the stream is received.
const _: () = assert!(DIFF_HEADER_BYTES_MAX <= BLOCK_SIZE / 2);
const _: () = assert!(DISK_STEP_BYTES_MAX.is_multiple_of(BLOCK_SIZE));
const _: () = assert!(COMMAND_BYTES_MAX + BLOCK_SIZE <= JOURNAL_APPEND_BYTES_MAX);
const _: () = assert!(SESSIONS_MAX * 64 <= VOTER_HEAD_BYTES_MAX - VOTER_TAIL_BYTES_MAX);
const _: () = assert!(VOTER_MESSAGE_BYTES_MAX <= JOURNAL_APPEND_BYTES_MAX);
const _: () = assert!(VOTER_CHUNK_BYTES_MAX + 1024 <= VOTER_MESSAGE_BYTES_MAX);
const _: () =
    assert!(FORWARDED_BYTES_MAX + FORWARDED_PROPOSALS_MAX * 16 + 1024 <= VOTER_MESSAGE_BYTES_MAX);
const _: () =
    assert!(LOG_BYTES_BEFORE_SNAPSHOT + 2 * JOURNAL_APPEND_BYTES_MAX <= JOURNAL_LOG_BYTES_MAX / 2);
const _: () = assert!(NBD_CONNECTIONS_MAX + ADMIN_CONNECTIONS_MAX < DESCRIPTORS_WANTED as usize);
const _: () = assert!(SCHEDULE_RETRY_MS_MAX / 1000 <= SCHEDULE_EVERY_S_MIN as u64);
const _: () =
    assert!(SCHEDULED_SNAPSHOTS_IN_FLIGHT_MAX + SCHEDULED_DROPS_IN_FLIGHT_MAX < PROPOSALS_MAX / 8);
const _: () = assert!(SEAL_ANSWER_MS_MAX < ADMIN_ANSWER_MS_MAX);
const _: () = assert!(STABLE_ANSWER_MS_MAX < ADMIN_ANSWER_MS_MAX);
const _: () = assert!(ADMIN_QUESTION_MS_MAX < ADMIN_ANSWER_MS_MAX);
const _: () = assert!(FREEZE_ATTEMPT_MS < FREEZE_RELEASE_WAIT_MS);
const _: () = assert!(FREEZE_MS_MAX < FREEZE_RELEASE_MS_MAX);
const _: () = assert!(ADMIN_REQUESTS_MAX < ADMIN_CONNECTIONS_MAX / 2);
const _: () = assert!(CHAIN_LINEAGES_MAX >= 1 && SHORTEN_AT_MOST <= SHORTEN_FREELY);
const _: () = assert!(SOURCE_OPEN_MS_MAX < ADMIN_ANSWER_MS_MAX);
const _: () = assert!(SOURCE_CONNECT_MS_MAX < SOURCE_OPEN_MS_MAX);
const _: () = assert!(SOURCE_PIECES_MAX <= SOURCE_QUESTIONS_MAX);
const _: () = assert!(WIRE_BODY_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(WIRE_PROMISES_MAX * 32 <= WIRE_BODY_BYTES_MAX);
const _: () = assert!(WIRE_HELLO_BYTES_MAX <= WIRE_BODY_BYTES_MAX);
// Half of a credit brings the longest request, and twice a credit is counted without overflow.
const _: () = assert!(
    MEMBER_REQUEST_BLOCKS_MAX as u64 * BLOCK_SIZE as u64
        <= LINK_BYTES_MAX as u64 / LINK_DISK_SHARE_DIVISOR
);
const _: () = assert!(LINK_BYTES_MIN < LINK_BYTES_MAX as u64);
const _: () = assert!(LINK_BYTES_MAX < u32::MAX / 2 && LINK_REQUESTS_MAX < u32::MAX / 2);
const _: () = assert!(LINK_REQUESTS_MAX as usize <= LINK_PENDING_MAX);
const _: () = assert!(4 * LINK_BEAT_MS <= LINK_SILENT_MS_MAX);
const _: () =
    assert!(LINK_SILENT_MS_MAX < LINK_FRAME_MS_MAX && LINK_FRAME_MS_MAX < LINK_HELLO_MS_MAX);
const _: () = assert!(LINK_RETRY_MS < LINK_RETRY_MS_MAX && LINK_RETRY_MS_MAX < LINK_STEADY_MS);
const _: () = assert!(WIRE_CONTROL_BYTES_MAX < LINK_CONTROL_QUEUE_BYTES_MAX);
const _: () = assert!(JOIN_REFUSE_MS < JOIN_REQUEST_MS_MAX);
const _: () = assert!(PEER_STRANGER_MS_MAX <= PEER_GREETING_MS_MAX);
const _: () = assert!(PEER_GREETINGS_PER_ADDRESS_PER_S_MAX < PEER_GREETINGS_PER_S_MAX);
const _: () = assert!(JOIN_REQUEST_MS_MAX < JOIN_DECIDE_MS_MAX && JOINS_MAX < PEER_GREETINGS_MAX);
const _: () = assert!(LINK_HELLO_MS_MAX <= PEER_GREETING_MS_MAX);
