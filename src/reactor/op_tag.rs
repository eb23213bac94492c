//! The identity of an operation in flight: what a completion's `user_data` says.
//!
//! The asymmetry to know: a slot is reused only after its last operation has ended, so a generation that does not
//! match is a fault of ours or the kernel's; such a completion is counted and dropped, never acted upon.

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum OpKind {
    /// Multishot receive into a buffer group.
    Receive = 1,
    /// A send of what fits.
    Send = 2,
    /// Waits for a peer to close altogether.
    HangUp = 3,
    /// Cancels another operation of the slot.
    Cancel = 4,
    /// Reads the wake-up descriptor.
    Wake = 5,
    /// Waits for room to send.
    Room = 6,
    /// Waits for some time.
    Rest = 7,
    /// Makes a spill file.
    OpenFile = 8,
    /// Writes to it.
    WriteFile = 9,
    /// Reads from it.
    ReadFile = 10,
    /// Gives a part of its space back.
    PunchFile = 11,
    /// Closes it.
    CloseFile = 12,
    /// Waits until who could not spill may try again.
    Retry = 13,
}

/// `user_data` as a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpTag {
    /// What the operation does.
    pub kind: OpKind,
    /// Whose it is.
    pub slot: u32,
    /// Which use of that slot, modulo 2^24.
    pub generation: u32,
}

impl OpTag {
    /// Generations count modulo this.
    pub const GENERATIONS: u32 = 1 << 24;

    /// The number for the ring.
    pub fn encode(self) -> u64 {
        u64::from(self.kind as u8) << 56 | u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// The tag of a completion; `None` for a number we never hand out.
    #[expect(clippy::cast_possible_truncation, reason = "takes the number apart into its fields")]
    pub fn decode(data: u64) -> Option<OpTag> {
        let kind = match data >> 56 {
            1 => OpKind::Receive,
            2 => OpKind::Send,
            3 => OpKind::HangUp,
            4 => OpKind::Cancel,
            5 => OpKind::Wake,
            6 => OpKind::Room,
            7 => OpKind::Rest,
            8 => OpKind::OpenFile,
            9 => OpKind::WriteFile,
            10 => OpKind::ReadFile,
            11 => OpKind::PunchFile,
            12 => OpKind::CloseFile,
            13 => OpKind::Retry,
            _ => return None,
        };
        Some(OpTag { kind, slot: data as u32, generation: (data >> 32) as u32 % OpTag::GENERATIONS })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_survive_the_ring() {
        for kind in (1..=13).map(|kind| OpTag::decode(kind << 56).unwrap().kind) {
            for (slot, generation) in [(0, 0), (1, OpTag::GENERATIONS - 1), (u32::MAX, 77)] {
                let tag = OpTag { kind, slot, generation };
                assert_eq!(OpTag::decode(tag.encode()), Some(tag));
            }
        }
        assert_eq!(OpTag::decode(0), None);
        assert_eq!(OpTag::decode(u64::MAX), None);
    }
}
