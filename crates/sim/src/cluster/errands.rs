//! What an administrator does while a cluster runs: snapshots, drains, and taking a volume from who
//! has it; and what becomes of those who had it.

use super::{net::Place, world::ClusterWorld};
use crate::world::Link;
use cluster::{DiskState, Map};
use engine::{
    ConnectionId, Input,
    admin::{AdminError, AdminReply, AdminRequest, AdminToken, Durability},
};
use proto::{BLOCK_SIZE, Buffer, Duration, Time};
use volume::{Completion, Operation, Request, RequestId};

/// A client whose volume was taken from it, and that does not know.
pub(super) struct Ghost {
    /// Which volume it had.
    pub(super) volume: u64,
    /// At which node it is.
    pub(super) at: Place,
    /// Since when somebody else has it.
    pub(super) since: Option<Time>,
    /// How much it has asked for since.
    asked: u64,
}

/// What is asked since somebody else has the volume is numbered from here on.
const LATE: u64 = 1 << 40;
/// Requests of one ghost at most.
const GHOST_REQUESTS_MAX: u64 = 6;
/// Snapshots of one volume at most.
const SNAPSHOTS_MAX: usize = 4;

impl ClusterWorld {
    /// Something an administrator does, or not.
    pub(super) fn run_errand(&mut self, at: Place, map: &Map) -> Result<(), String> {
        if self.is_healed {
            // All that is drained is to stay after all: in the end everything is to be whole.
            let drained = map.disks().find(|disk| disk.state == DiskState::Draining);
            let Some(disk) = drained.map(|disk| disk.id) else { return Ok(()) };
            return self.send_admin(at, AdminRequest::DiskDrain { disk, wanted: false });
        }
        if !self.is_dangerous {
            return Ok(());
        }
        if self.fate.chance(self.mix.drains) {
            let place = self.fate.below(self.mix.nodes as u64) as usize;
            let wanted = self.fate.coin();
            if let Some(disk) = self.members[place].disk {
                return self.send_admin(at, AdminRequest::DiskDrain { disk, wanted });
            }
        }
        let volumes: Vec<u64> = self.tenants.keys().copied().collect();
        let chosen = self.fate.below(volumes.len().max(1) as u64) as usize;
        let Some(volume) = volumes.get(chosen).copied() else { return Ok(()) };
        if self.mix.ack && self.promises.chance(150_000) {
            return self.change_promise(volume, at);
        }
        if self.fate.chance(self.mix.takeovers) {
            return self.take_over(volume, at, map);
        }
        if self.fate.chance(self.mix.snapshots) {
            let name = self.tenants[&volume].guest.name.clone();
            let known = map.volume(proto::VolumeId(volume)).map(|known| &known.snapshots);
            let oldest = known.filter(|known| known.len() >= SNAPSHOTS_MAX || self.fate.coin());
            let request = match oldest.and_then(|known| known.first()) {
                Some(oldest) => AdminRequest::SnapshotDelete { name, tag: oldest.tag.clone() },
                None => AdminRequest::SnapshotCreate { name, tag: format!("s{}", self.next_token) },
            };
            return self.send_admin(at, request);
        }
        Ok(())
    }

    /// Acknowledgements of a volume are to promise something else.
    fn change_promise(&mut self, volume: u64, at: Place) -> Result<(), String> {
        let durability = match self.promises.coin() {
            true => Durability::Ack,
            false => Durability::Flush,
        };
        let tenant = self.tenants.get_mut(&volume).expect("picked among them");
        if tenant.promise.is_some() {
            return Ok(()); // what was asked before may still come to be
        }
        if durability == Durability::Flush {
            // It may hold from now on, whatever the answer is.
            tenant.guest.is_stable = false;
            tenant.is_strict = false;
        }
        tenant.promise = Some(AdminToken(self.next_token + 1));
        let name = tenant.guest.name.clone();
        self.send_admin(at, AdminRequest::VolumeDurability { name, durability })
    }

    /// An administrator was answered: a volume may promise something else from now on.
    pub(super) fn promised(&mut self, token: AdminToken, result: &Result<AdminReply, AdminError>) {
        let tenant = self.tenants.values_mut().find(|tenant| tenant.promise == Some(token));
        let Some(tenant) = tenant else { return };
        if let Ok(AdminReply::Volume(volume)) = result {
            tenant.guest.is_stable = volume.durability == Durability::Ack;
            tenant.promise = None;
        }
    }

    /// A volume is taken from who has it, and its guest goes on at this node; what runs at the
    /// other is not told by anybody here.
    fn take_over(&mut self, volume: u64, at: Place, map: &Map) -> Result<(), String> {
        let tenant = self.tenants.get_mut(&volume).expect("picked among them");
        let Link::Open(connection) = tenant.guest.link else {
            // Its guest has gone on, and waits for what a node has that does not serve.
            let writer = map.volume(proto::VolumeId(volume)).and_then(|known| known.writer());
            let is_down = writer.is_some_and(|writer| {
                let holder = self.members.iter().position(|it| it.node == writer.node);
                holder.is_some_and(|it| it != tenant.at && !self.members[it].serves(self.now))
            });
            if !is_down {
                return Ok(());
            }
            let name = tenant.guest.name.clone();
            return self.send_admin(at, AdminRequest::VolumeDetach { name, tag: None });
        };
        if tenant.at == at || self.members[tenant.at].sim().is_none() {
            return Ok(());
        }
        let ghost = Ghost { volume, at: tenant.at, since: None, asked: 0 };
        let name = tenant.guest.name.clone();
        tenant.guest.forget();
        tenant.asked.clear();
        tenant.takeovers += 1;
        (tenant.at, tenant.guest.next_at) = (at, self.now);
        self.trace.line(self.now, format_args!("{at}: takes {name} over from {}", ghost.at));
        // Who does not hear of it goes on for longest: its disks it may still reach.
        if self.fate.coin()
            && let Some(leader) = self.leader()
            && leader != ghost.at
        {
            let ways = vec![(leader, ghost.at), (ghost.at, leader)];
            self.cut(ways, Some(Duration::from_secs(6)));
        }
        self.ghosts.insert(connection, ghost);
        self.send_admin(at, AdminRequest::VolumeDetach { name, tag: None })
    }

    /// Who had the volume goes on as if it had it.
    pub(super) fn ghost_acts(&mut self, volume: u64) -> Result<(), String> {
        let mut ghosts = self.ghosts.iter().filter(|(_, ghost)| {
            ghost.volume == volume && ghost.since.is_some() && ghost.asked < GHOST_REQUESTS_MAX
        });
        let Some((&connection, ghost)) = ghosts.next() else { return Ok(()) };
        let at = ghost.at;
        if !self.members[at].acts(self.now) || !self.random.chance(300_000) {
            return Ok(());
        }
        let ghost = self.ghosts.get_mut(&connection).expect("just seen");
        ghost.asked += 1;
        let id = RequestId(LATE + ghost.asked);
        let (offset, length) = (self.random.below(4) * BLOCK_SIZE as u64, BLOCK_SIZE as u64);
        let operation = match self.random.coin() {
            true => Operation::Read,
            false => {
                // Bytes that nobody ever wrote: whoever reads them reads what must not be there.
                let mut buffer = Buffer::stale(BLOCK_SIZE);
                buffer.as_mut_slice().fill(0xee);
                Operation::Write { buffer, fua: false }
            }
        };
        self.trace.line(self.now, format_args!("{at}: the ghost {} asks {}", connection.0, id.0));
        let request = Request { id, offset, length, operation };
        self.input(at, Input::Request { connection, request })
    }

    /// A client without a volume was told how something ended that it asked for.
    pub(super) fn ghost_told(
        &mut self,
        connection: ConnectionId,
        id: RequestId,
        result: &Result<Completion, volume::Error>,
    ) -> Result<(), String> {
        let is_ghost = self.ghosts.contains_key(&connection);
        match result {
            Ok(_) if is_ghost && id.0 > LATE => Err(format!(
                "client {} was served after its volume was given to another",
                connection.0
            )),
            _ => Ok(()),
        }
    }
}
