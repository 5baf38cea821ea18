//! Restarts, what must be true after each, and the end of a run.

use super::{Guest, Link, PATIENCE, Restart, World};
use crate::{
    crashpoints::{check_offline, check_offline_mended},
    node::{Life, SimNode},
};
use engine::{Input, admin::AdminReply, admin::AdminRequest};
use proto::{BLOCK_SIZE, Duration};

impl World {
    /// The process ends at once, perhaps the machine too; the node is started anew and everything
    /// it owes is verified.
    pub(super) fn restart(&mut self, how: Restart) -> Result<(), String> {
        self.trace.line(self.now, format_args!("crash: {how:?}"));
        let doubtful = self.doubtful;
        let (disk_state, journal_state) = (self.crash_state(), self.crash_state());
        self.summary.crashes[if how == Restart::Power {
            1
        } else if doubtful {
            3
        } else {
            0
        }] += 1;
        self.reboot(|media| {
            if how == Restart::Power {
                media.disk.power_cut(&disk_state);
                media.journal.power_cut(&journal_state);
            } else {
                media.disk.kill();
                media.journal.kill();
            }
        });
        if how == Restart::Power || doubtful {
            self.oracle.power_cut();
        } else {
            self.oracle.killed();
        }
        self.await_ready()?;
        self.resync()?;
        self.verify()
    }

    /// The node is stopped in order and started again.
    pub(super) fn stop_and_start(&mut self) -> Result<(), String> {
        self.trace.line(self.now, format_args!("stop"));
        self.summary.crashes[2] += 1;
        self.stop()?;
        let doubtful = self.doubtful;
        self.reboot(|media| {
            media.disk.kill();
            media.journal.kill();
        });
        if doubtful {
            self.oracle.power_cut()
        } else {
            self.oracle.killed()
        }
        self.await_ready()?;
        self.resync()?;
        self.verify()
    }

    /// Stops the node in order.
    fn stop(&mut self) -> Result<(), String> {
        self.node.input(self.now, Input::Stop);
        self.node.poll(self.now);
        let end = self.now + PATIENCE;
        while *self.node.life() != Life::Stopped {
            self.listen()?;
            for (volume, connection) in self.closing() {
                self.hang_up(volume, connection);
            }
            self.part_with_readers();
            if *self.node.life() == Life::Stopped {
                break;
            }
            let due = self.node.next_due().filter(|due| *due <= end);
            let Some(due) = due else {
                if self.doubtful {
                    return Ok(());
                }
                return Err("the node does not stop".into());
            };
            self.now = self.now.max(due);
            self.node_acts()?;
        }
        self.trace.line(self.now, format_args!("stopped"));
        Ok(())
    }

    /// Guests that were told to go and wait for nothing any more.
    fn closing(&self) -> Vec<(u64, engine::ConnectionId)> {
        let ready = |guest: &&Guest| guest.in_flight.is_empty();
        let guests = self.guests.values().filter(ready);
        guests
            .filter_map(|guest| match guest.link {
                Link::Closing(connection) => Some((guest.volume, connection)),
                _ => None,
            })
            .collect()
    }

    /// Replaces the process.
    fn reboot(&mut self, crash: impl FnOnce(&mut crate::node::Media)) {
        for guest in self.guests.values_mut() {
            guest.forget();
        }
        self.readers.clear();
        self.doubtful = false;
        self.excused = false;
        self.now = self.now + Duration::from_millis(10);
        let (setup, now) = (self.mix.setup.clone(), self.now);
        self.node.replace(|mut media| {
            crash(&mut media);
            media.disk.clear_faults();
            SimNode::start(now, &setup, media)
        });
    }

    /// Waits until the node serves.
    pub(super) fn await_ready(&mut self) -> Result<(), String> {
        self.drive("the start", |world| *world.node.life() == Life::Ready)?;
        self.trace.line(self.now, format_args!("ready"));
        Ok(())
    }

    /// Lets the node alone act until something is so.
    pub(super) fn drive(
        &mut self,
        what: &str,
        done: impl Fn(&World) -> bool,
    ) -> Result<(), String> {
        let end = self.now + PATIENCE;
        loop {
            self.listen()?;
            if done(self) {
                return Ok(());
            }
            let Some(due) = self.node.next_due().filter(|due| *due <= end) else {
                return Err(format!("{what} never ends"));
            };
            self.now = self.now.max(due);
            self.node_acts()?;
        }
    }

    /// Reads everything that was ever written, and compares sizes and the space used.
    fn verify(&mut self) -> Result<(), String> {
        self.node.engine().check();
        for volume in self.guests.keys().copied().collect::<Vec<_>>() {
            self.connect(volume);
            self.drive("an attachment", |world| {
                matches!(world.guests[&volume].link, Link::Open(_) | Link::None)
            })?;
            let Link::Open(connection) = self.guests[&volume].link else {
                return Err("a guest cannot have its volume after a restart".into());
            };
            let guest = &self.guests[&volume];
            for (offset, length) in self.oracle.touched(volume, guest.bytes) {
                let guest = self.guests.get_mut(&volume).expect("listed");
                let request = guest.read(&mut self.oracle, offset, length);
                self.ask(connection, request);
                self.node.poll(self.now);
                self.drive("a read", |world| world.guests[&volume].in_flight.is_empty())?;
            }
        }
        self.verify_snapshots()?;
        self.verify_space()
    }

    /// Compares what the node says that volumes use with what they must.
    fn verify_space(&mut self) -> Result<(), String> {
        let AdminReply::Volumes(volumes) = self.consult(AdminRequest::VolumeList)? else {
            return Err("the list of volumes is none".into());
        };
        for report in volumes {
            let Some(guest) = self.guests.get(&report.volume.0) else { continue };
            let owed = self.oracle.data_blocks(guest.volume);
            let used = report.used_bytes / BLOCK_SIZE as u64;
            if guest.has_layers {
                continue; // it shows what others have, and has what it does not show
            }
            // Zeros that were to keep their space have some.
            if used < *owed.start() || (used > *owed.end() && self.mix.guest.zero == 0) {
                return Err(format!("volume {} uses {used} blocks, not {owed:?}", report.name));
            }
        }
        Ok(())
    }

    /// Heals everything, verifies it, deletes it, and looks whether all space is back.
    pub(super) fn finish(&mut self) -> Result<(), String> {
        self.trace.line(self.now, format_args!("heal"));
        self.node.media_mut().disk.clear_faults();
        self.restart(Restart::Kill)?;
        let errands = std::mem::take(&mut self.guests);
        for guest in errands.into_values() {
            if let Some(connection) = guest.connection() {
                self.node.input(self.now, Input::Close { connection });
            }
            let name = guest.name.clone();
            self.delete_whenever_possible(&name)?;
            self.oracle.remove(guest.volume);
        }
        self.snapshots.clear();
        let end = self.now + Duration::from_secs(10);
        while let Some(due) = self.node.next_due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.node_acts()?;
        }
        let AdminReply::Disks(disks) = self.consult(AdminRequest::DiskList)? else {
            return Err("the list of disks is none".into());
        };
        if disks.iter().any(|disk| disk.data_bytes != 0) {
            return Err(format!("with every volume deleted, space is still used: {disks:?}"));
        }
        self.stop()?;
        // A page of a map that could not be read when its layer went leaves what it named.
        let misreads = self.mix.faults.read_error + self.mix.faults.flip_on_read;
        let may_leak = misreads > 0 && disks.iter().any(|disk| disk.lost_blocks > 0);
        let medium = &self.node.media().disk;
        match may_leak {
            true => check_offline_mended(medium, |_| true).map(|_| ()),
            false => check_offline(medium),
        }
    }

    fn delete_whenever_possible(&mut self, name: &str) -> Result<(), String> {
        for _ in 0..1_000 {
            match self.consult(AdminRequest::VolumeDelete {
                name: name.into(),
                with_snapshots: true,
                keep_s: Some(0),
            }) {
                Ok(_) => return Ok(()),
                Err(_) if self.node.next_due().is_some() => {
                    self.now = self.now.max(self.node.next_due().expect("just seen"));
                    self.node_acts()?;
                }
                Err(sentence) => return Err(sentence),
            }
        }
        Err(format!("volume {name} cannot be deleted"))
    }
}
