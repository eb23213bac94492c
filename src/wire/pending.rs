//! Bytes received and not yet taken as a message. Taking many small messages out of one large receive moves no
//! bytes; the next receive does, once.

/// Received bytes in order.
#[derive(Debug, Default)]
pub(super) struct Pending {
    bytes: Vec<u8>,
    taken: usize,
}

impl Pending {
    /// Adds received bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.taken));
        self.bytes.extend_from_slice(bytes);
    }

    /// What is left.
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Forgets the first `len` bytes, and gives the memory back when none are left.
    pub(super) fn take(&mut self, len: usize) {
        self.taken += len;
        if self.taken == self.bytes.len() {
            *self = Pending::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pending;

    #[test]
    fn what_was_taken_does_not_pile_up() {
        let mut pending = Pending::default();
        pending.push(b"a");
        for _ in 0..1_000 {
            pending.push(b"bc");
            pending.take(2);
            assert_eq!(pending.rest().len(), 1);
            assert!(pending.bytes.len() <= 3);
        }
        pending.take(1);
        assert_eq!((pending.rest(), pending.bytes.capacity()), (&b""[..], 0));
    }
}
