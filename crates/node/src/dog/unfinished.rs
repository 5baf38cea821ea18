//! A volume while an import fills it, under a name that says so (see [`engine::unfinished`]): dog
//! may be killed at any moment, and then only the name tells that the content is not whole.

use super::{
    Context, Failure, arguments::Keeping, failure::FailureKind, interrupt::Interrupt, volume,
    with_remainder,
};
use engine::{
    admin::AdminRequest,
    unfinished::{self, Before},
};
use rustix::rand::{GetRandomFlags, getrandom};

/// One volume that is being filled. It gets its name by [`Unfinished::finish`].
pub struct Unfinished<'a> {
    context: &'a Context,
    /// What it is called once it is filled.
    name: &'a str,
    /// What it is called until then.
    pub working: String,
    before: Before,
}

impl<'a> Unfinished<'a> {
    /// Makes a new volume to fill.
    pub fn create(
        context: &'a Context,
        name: &'a str,
        bytes: u64,
        kept: Keeping,
    ) -> Result<Unfinished<'a>, Failure> {
        let unfinished = Unfinished::new(context, name, Before::Nothing)?;
        let name = unfinished.working.clone();
        context.ask_for_volume(&volume::creation(name, bytes, kept))?;
        Ok(unfinished)
    }

    /// Takes a volume that exists and that nobody has attached, to replace its content.
    pub fn take(
        context: &'a Context,
        name: &'a str,
        interrupt: &Interrupt,
    ) -> Result<Unfinished<'a>, Failure> {
        let unfinished = Unfinished::new(context, name, Before::Volume)?;
        // While we have it, nobody else gets it under the old name.
        let client = context.attach(name, interrupt)?;
        unfinished.rename(name, &unfinished.working, true)?;
        client.disconnect()?;
        Ok(unfinished)
    }

    fn new(context: &'a Context, name: &'a str, before: Before) -> Result<Unfinished<'a>, Failure> {
        let working = unfinished::name(name, before, draw()?);
        Ok(Unfinished { context, name, working, before })
    }

    fn rename(&self, name: &str, new_name: &str, while_attached: bool) -> Result<(), Failure> {
        let (name, new_name) = (name.to_string(), new_name.to_string());
        let request = AdminRequest::VolumeRename { name, new_name, while_attached };
        self.context.ask_for_volume(&request).map(|_| ())
    }

    /// The volume is filled: it gets its name.
    pub fn finish(&self) -> Result<(), Failure> {
        // The daemon may not have noticed yet that our own connection is gone.
        self.rename(&self.working, self.name, true).map_err(|failure| {
            let working = &self.working;
            with_remainder(
                failure,
                &format!(
                    "what was imported is whole and is volume {working}: give it a name with `dog \
                     volume rename {working} NAME`"
                ),
            )
        })
    }

    /// The volume could not be filled; the failure to report after what was begun is put in order.
    /// `written` says whether its content was changed.
    pub fn give_up(
        &self,
        failure: Failure,
        written: bool,
        keep: bool,
        interrupt: &Interrupt,
    ) -> Failure {
        let working = &self.working;
        match self.before {
            Before::Nothing if keep => {
                with_remainder(failure, &format!("the partial volume {working} is kept"))
            }
            Before::Nothing => match self.context.delete_when_free(working, interrupt) {
                Ok(()) => with_remainder(failure, "the partial volume was removed again"),
                Err(refused) => with_remainder(
                    failure,
                    &format!(
                        "the partial volume {working} could not be removed ({refused}): delete it \
                         with `dog volume delete {working} --now --yes`"
                    ),
                ),
            },
            Before::Volume => self.give_back(failure, written, interrupt),
        }
    }

    /// A volume that existed before gets its name back.
    fn give_back(&self, failure: Failure, written: bool, interrupt: &Interrupt) -> Failure {
        let (name, working) = (self.name, &self.working);
        interrupt.clean_up();
        if let Err(refused) = self.rename(working, name, true) {
            let state = if written { "is overwritten in part" } else { "has its former content" };
            return with_remainder(
                failure,
                &format!(
                    "volume {name} {state} and could not be given its name back ({refused}): say \
                     `dog volume rename {working} {name}`"
                ),
            );
        }
        let state = match written {
            false => format!("nothing was written, and volume {name} is as it was"),
            true => {
                format!("volume {name} existed before and is overwritten in part: import again")
            }
        };
        with_remainder(failure, &state)
    }
}

/// A number, so that two imports do not meet under one name.
fn draw() -> Result<u32, Failure> {
    let mut bytes = [0; 4];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(4) => Ok(u32::from_le_bytes(bytes)),
        _ => Err(Failure {
            kind: FailureKind::Failed,
            sentence: "the kernel gives no random numbers; try again".to_string(),
        }),
    }
}
