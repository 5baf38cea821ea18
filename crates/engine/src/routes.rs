//! Numbers for things in flight: each gets the lowest free one, so the table stays as small as
//! the most that were ever in flight at once.

/// A table of things in flight, each taken out exactly once by the number it was put in under.
#[derive(Debug)]
pub(crate) struct Routes<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Routes<T> {
    pub(crate) fn new() -> Routes<T> {
        Routes { slots: Vec::new(), free: Vec::new() }
    }

    /// Puts one in and names it.
    pub(crate) fn insert(&mut self, value: T) -> u64 {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(value);
                u64::from(slot)
            }
            None => {
                self.slots.push(Some(value));
                self.slots.len() as u64 - 1
            }
        }
    }

    /// One of them.
    ///
    /// # Panics
    /// If it is not in flight.
    pub(crate) fn get(&self, number: u64) -> &T {
        let slot = usize::try_from(number).ok().and_then(|slot| self.slots.get(slot));
        slot.and_then(Option::as_ref).expect("asked for what is not in flight")
    }

    /// Takes one out.
    ///
    /// # Panics
    /// If it is not in flight: something was answered twice, a bug of the answering machine.
    pub(crate) fn remove(&mut self, number: u64) -> T {
        let slot = usize::try_from(number).ok().and_then(|slot| self.slots.get_mut(slot));
        let value = slot.and_then(Option::take).expect("answered what was not asked");
        self.free.push(number as u32);
        value
    }

    /// How many are in flight.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_reused_only_after_they_are_taken_out() {
        let mut routes = Routes::new();
        let a = routes.insert('a');
        let b = routes.insert('b');
        assert_ne!(a, b);
        assert_eq!(routes.remove(a), 'a');
        assert_eq!(routes.insert('c'), a);
        assert_eq!((routes.remove(b), routes.remove(a), routes.len()), ('b', 'c', 0));
    }

    #[test]
    #[should_panic(expected = "answered what was not asked")]
    fn an_answer_given_twice_is_noticed() {
        let mut routes = Routes::new();
        let a = routes.insert('a');
        routes.remove(a);
        routes.remove(a);
    }
}
