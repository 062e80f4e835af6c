//! The endpoints of a data plane thread, by slot, and which of them something happened to in this turn. For the switch they are its
//! members: a frame of one goes to another's TAP here.

use smoltcp::time::Instant;

use crate::runtime::endpoint::Endpoint;
use crate::stack::Output as _;
use crate::stack::arena::Id;
use crate::stack::switch::Members;
use crate::stack::verdict::DropReason;

/// The endpoints, by slot.
pub(super) struct Table {
    pub(super) slots: Vec<Option<Box<Endpoint>>>,
    /// Those that something happened to this turn.
    pub(super) touched: Vec<u32>,
    /// The turn's time.
    pub(super) now: Instant,
}

impl Default for Table {
    fn default() -> Self {
        Self { slots: Vec::new(), touched: Vec::new(), now: Instant::ZERO }
    }
}

impl Table {
    pub(super) fn at(&mut self, slot: u32) -> Option<&mut Endpoint> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// The endpoint, noted as one that something happened to.
    pub(super) fn touch(&mut self, slot: u32) -> Option<&mut Endpoint> {
        let endpoint = self.slots.get_mut(slot as usize)?.as_deref_mut()?;
        endpoint.sockets.now = self.now;
        if !std::mem::replace(&mut endpoint.touched, true) {
            self.touched.push(slot);
        }
        Some(endpoint)
    }

    /// The same, if it is that occupant.
    pub(super) fn touch_id(&mut self, id: Id) -> Option<&mut Endpoint> {
        self.at(id.index).filter(|endpoint| endpoint.id == id)?;
        self.touch(id.index)
    }

    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut Box<Endpoint>> {
        self.slots.iter_mut().flatten()
    }
}

impl Members for Table {
    fn to_member(&mut self, member: u16, frame: &[u8]) {
        let now = self.now;
        let Some(endpoint) = self.at(member.into()) else { return };
        endpoint.sockets.now = now;
        let taken = endpoint.sockets.to_guest(frame);
        // Nothing else needs the end of the turn.
        if !taken || !endpoint.sockets.captures.is_empty() || endpoint.sockets.faults.is_some() {
            if !taken {
                endpoint.sockets.drops.count(DropReason::Link);
            }
            self.touch(member.into());
        }
    }
}

/// The table with one who is not in it yet.
pub(super) struct Newcomer<'a> {
    pub(super) table: &'a mut Table,
    pub(super) endpoint: &'a mut Box<Endpoint>,
}

impl Members for Newcomer<'_> {
    fn to_member(&mut self, member: u16, frame: &[u8]) {
        if u32::from(member) == self.endpoint.id.index {
            self.endpoint.sockets.to_guest(frame);
        } else {
            self.table.to_member(member, frame);
        }
    }
}
