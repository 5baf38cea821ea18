//! Things in flight, each named by a number that is never used again: an answer that comes late or
//! twice finds nothing.

/// A table of things in flight. Numbers hold the slot in their lower half and the count of the
/// slot's uses in their upper half.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    uses: u32,
    value: Option<T>,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// Puts one in and names it.
    pub fn insert(&mut self, value: T) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { uses: 0, value: None });
            u32::try_from(self.slots.len() - 1).expect("what is in flight is bounded")
        });
        let place = &mut self.slots[slot as usize];
        place.uses = place.uses.wrapping_add(1);
        place.value = Some(value);
        number(place.uses, slot)
    }

    /// Looks at one.
    pub fn at(&self, number: u64) -> Option<&T> {
        let slot = self.slots.get(number as u32 as usize)?;
        if slot.uses != (number >> 32) as u32 {
            return None;
        }
        slot.value.as_ref()
    }

    /// Looks at one, to change it.
    pub fn at_mut(&mut self, number: u64) -> Option<&mut T> {
        let slot = self.slots.get_mut(number as u32 as usize)?;
        if slot.uses != (number >> 32) as u32 {
            return None;
        }
        slot.value.as_mut()
    }

    /// Takes one out; nothing if it was taken out before.
    pub fn remove(&mut self, number: u64) -> Option<T> {
        let slot = self.slots.get_mut(number as u32 as usize)?;
        if slot.uses != (number >> 32) as u32 {
            return None;
        }
        let value = slot.value.take()?;
        self.free.push(number as u32);
        Some(value)
    }

    /// How many are in flight.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether none is in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them with their numbers, in order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slots.iter().enumerate().filter_map(|(slot, place)| {
            Some((number(place.uses, slot as u32), place.value.as_ref()?))
        })
    }
}

fn number(uses: u32, slot: u32) -> u64 {
    (u64::from(uses) << 32) | u64::from(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_number_finds_nothing() {
        let mut slots = Slots::default();
        let a = slots.insert('a');
        let b = slots.insert('b');
        assert_eq!(slots.remove(a), Some('a'));
        let c = slots.insert('c');
        assert_eq!(c as u32, a as u32, "the slot is used again");
        assert_eq!(slots.at(a), None);
        assert_eq!(slots.remove(a), None);
        assert_eq!(slots.at(b), Some(&'b'));
        assert_eq!(slots.at_mut(c), Some(&mut 'c'));
        assert_eq!(slots.len(), 2);
        assert_eq!(slots.iter().map(|(_, value)| *value).collect::<Vec<_>>(), ['c', 'b']);
    }
}
