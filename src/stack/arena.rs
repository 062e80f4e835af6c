//! Tables that own flows and hand out ids which can go stale without harm.
//!
//! A slot's generation is new at each insertion, so an id kept by an epoll event, a timer or a log line of a flow that
//! is gone finds nothing instead of a stranger.

use slab::Slab;

/// Names one entry of one [`Arena`]. 32 + 32 bits, so that it fits beside a tag in an epoll event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// Slot; small and reused, so side tables may be indexed by it.
    pub index: u32,
    /// Which occupant of the slot.
    pub generation: u32,
}

/// A slab whose ids carry a generation.
#[derive(Debug)]
pub struct Arena<T> {
    slab: Slab<(u32, T)>,
    next_generation: u32,
    slots: u32,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { slab: Slab::new(), next_generation: 1, slots: 0 }
    }
}

impl<T> Arena<T> {
    /// Entries.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Adds an entry.
    pub fn insert(&mut self, value: T) -> Id {
        let generation = self.next_generation;
        // 24 bits travel in an epoll event beside a tag; zero never names anything.
        self.next_generation = if generation == 0x00ff_ffff { 1 } else { generation + 1 };
        let index = self.slab.insert((generation, value)) as u32;
        self.slots = self.slots.max(index + 1);
        Id { index, generation }
    }

    /// The entry, if it still lives.
    pub fn get(&self, id: Id) -> Option<&T> {
        self.slab.get(id.index as usize).filter(|(generation, _)| *generation == id.generation).map(|(_, value)| value)
    }

    /// The entry, if it still lives.
    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        self.slab
            .get_mut(id.index as usize)
            .filter(|(generation, _)| *generation == id.generation)
            .map(|(_, value)| value)
    }

    /// Takes the entry out.
    pub fn remove(&mut self, id: Id) -> Option<T> {
        self.get(id)?;
        Some(self.slab.remove(id.index as usize).1)
    }

    /// Slots that were ever used.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The occupant of a slot.
    pub fn at(&self, slot: u32) -> Option<(Id, &T)> {
        let (generation, value) = self.slab.get(slot as usize)?;
        Some((Id { index: slot, generation: *generation }, value))
    }

    /// All entries, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.slab
            .iter()
            .map(|(index, (generation, value))| (Id { index: index as u32, generation: *generation }, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_finds_nothing() {
        let mut arena = Arena::default();
        let first = arena.insert("a");
        assert_eq!(arena.remove(first), Some("a"));
        let second = arena.insert("b");
        assert_eq!(first.index, second.index);
        assert_eq!(arena.get(first), None);
        assert_eq!(arena.remove(first), None);
        assert_eq!(arena.get(second), Some(&"b"));
    }
}
