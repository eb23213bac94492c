//! Files without a name that hold what slow clients have not read: made, written, read, punched and closed in the ring.
//!
//! [`FileId`] names one as `SocketId` names a socket. A short write or read is reported as it is; who asked goes on.
//! The asymmetry to know: unlike a send, an operation on a file cannot be cancelled for certain, so a file that closes
//! keeps its memory and its slot until its last operation has ended, and so does the reactor itself.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use nix::errno::Errno;
use nix::libc;

use super::op_tag::{OpKind, OpTag};
use super::send_op::SendOp;
use super::{Event, Reactor};
use crate::buf::BufView;

/// The directory itself: what is made in it has no name.
const HERE: &CStr = c".";

/// A spill file of one reactor. Never reused: the generation counts the uses of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    slot: u32,
    generation: u32,
}

impl FileId {
    /// The slot: a small number, for tables beside this one. Reused after [`Reactor::close_file`].
    pub fn slot(self) -> usize {
        self.slot as usize
    }

    fn tag(self, kind: OpKind) -> OpTag {
        OpTag { kind, slot: self.slot, generation: self.generation }
    }
}

/// How an operation on a file ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileEvent {
    /// It is there, or cannot be.
    Opened(Result<(), Errno>),
    /// Bytes written.
    Wrote(Result<usize, Errno>),
    /// Bytes read.
    Read(Result<usize, Errno>),
    /// A part of its space is free, or is not.
    Punched(Result<(), Errno>),
}

#[derive(Debug, Default)]
struct File {
    fd: Option<OwnedFd>,
    write: Option<Box<SendOp>>,
    read: Option<Box<SendOp>>,
    in_flight: u32,
    closing: bool,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    file: Option<File>,
}

/// All spill files of a reactor.
#[derive(Debug, Default)]
pub(super) struct Files {
    dir: Option<Arc<OwnedFd>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Files {
    fn get(&mut self, id: FileId) -> Option<&mut File> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        slot.file.as_mut()
    }

    /// Whether nothing touches memory of ours.
    pub(super) fn are_idle(&self) -> bool {
        let has_op = |file: &File| file.write.is_some() || file.read.is_some();
        !self.slots.iter().filter_map(|slot| slot.file.as_ref()).any(has_op)
    }
}

impl Reactor {
    /// Says where spill files are made.
    pub fn set_spill_dir(&mut self, dir: Arc<OwnedFd>) {
        self.files.dir = Some(dir);
    }

    /// Makes a file; [`FileEvent::Opened`] says whether it is there. `None` without a directory.
    pub fn open_file(&mut self) -> Option<FileId> {
        let dir = self.files.dir.as_ref()?.as_raw_fd();
        let slot = self.files.free.pop().unwrap_or_else(|| {
            self.files.slots.push(Slot::default());
            u32::try_from(self.files.slots.len() - 1).expect("fewer files than sessions")
        });
        let entry = &mut self.files.slots[slot as usize];
        entry.file = Some(File::default());
        let id = FileId { slot, generation: entry.generation };
        let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_EXCL | libc::O_CLOEXEC;
        let open = opcode::OpenAt::new(types::Fd(dir), HERE.as_ptr()).flags(flags).mode(0o600).build();
        // SAFETY: the path is a constant of the program.
        unsafe { self.submit_file(id, OpKind::OpenFile, open) };
        Some(id)
    }

    /// Writes `views` at `offset`. One write at a time; the views' memory is held until its end.
    pub fn write_file(&mut self, id: FileId, views: &[BufView], offset: u64) {
        let mut op = self.spare_sends.pop().unwrap_or_default();
        op.load(&mut self.mem, views);
        let Some((file, fd)) = self.files.get(id).and_then(usable) else { return self.spare(op) };
        assert!(file.write.is_none(), "one write at a time");
        let (pieces, count) = op.pieces();
        let write = opcode::Writev::new(fd, pieces, count).offset(offset).build();
        file.write = Some(op);
        // SAFETY: the op, boxed in the file's slot, keeps the list of pieces at its address and holds a reference to
        // every piece's memory until this operation has ended (`file_completed`); `Drop` waits for that.
        unsafe { self.submit_file(id, OpKind::WriteFile, write) };
    }

    /// Fills `views`, which are of chunks that nobody else looks at, with what is at `offset`. One read at a time.
    pub fn read_file(&mut self, id: FileId, views: &[BufView], offset: u64) {
        let mut op = self.spare_sends.pop().unwrap_or_default();
        op.load_to_fill(&mut self.mem, views);
        let Some((file, fd)) = self.files.get(id).and_then(usable) else { return self.spare(op) };
        assert!(file.read.is_none(), "one read at a time");
        let (pieces, count) = op.pieces();
        let read = opcode::Readv::new(fd, pieces, count).offset(offset).build();
        file.read = Some(op);
        // SAFETY: as in `write_file`; the chunks were made for this read, and nobody else has a view of them before
        // its end is reported.
        unsafe { self.submit_file(id, OpKind::ReadFile, read) };
    }

    /// Gives the space of a part of the file back; what was there is gone.
    pub fn punch_file(&mut self, id: FileId, offset: u64, len: u64) {
        let Some((_, fd)) = self.files.get(id).and_then(usable) else { return };
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let punch = opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build();
        // SAFETY: no memory of ours is part of it.
        unsafe { self.submit_file(id, OpKind::PunchFile, punch) };
    }

    /// Closes a file once nothing is in flight on it. Nothing is reported of it from now on.
    pub fn close_file(&mut self, id: FileId) {
        if let Some(file) = self.files.get(id) {
            file.closing = true;
            self.retire_file(id);
        }
    }

    /// # Safety
    /// As for `submit`.
    unsafe fn submit_file(&mut self, id: FileId, kind: OpKind, entry: squeue::Entry) {
        if let Some(file) = self.files.get(id) {
            file.in_flight += 1;
        }
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { self.submit(entry, id.tag(kind)) };
    }

    /// Takes note of a completion.
    pub(super) fn file_completed(&mut self, tag: OpTag, result: i32, events: &mut Vec<Event>) {
        let id = FileId { slot: tag.slot, generation: tag.generation };
        let outcome = usize::try_from(result).map_err(|_| Errno::from_raw(-result));
        let Some(file) = self.files.get(id) else {
            self.counters.stale += 1;
            return;
        };
        file.in_flight -= 1;
        let mut ended = None;
        let event = match tag.kind {
            OpKind::OpenFile => {
                if result >= 0 {
                    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
                    file.fd = Some(unsafe { OwnedFd::from_raw_fd(result) });
                }
                FileEvent::Opened(outcome.map(drop))
            }
            OpKind::WriteFile => {
                ended = file.write.take();
                FileEvent::Wrote(outcome)
            }
            OpKind::ReadFile => {
                ended = file.read.take();
                FileEvent::Read(outcome)
            }
            _ => FileEvent::Punched(outcome.map(drop)),
        };
        let closing = file.closing;
        ended.into_iter().for_each(|op| self.spare(op));
        if closing {
            self.retire_file(id);
        } else {
            events.push(Event::File(id, event));
        }
    }

    /// Frees a closing file's slot when nothing is in flight on it.
    fn retire_file(&mut self, id: FileId) {
        let Some(file) = self.files.get(id).filter(|file| file.closing && file.in_flight == 0) else { return };
        let fd = file.fd.take();
        let slot = &mut self.files.slots[id.slot as usize];
        slot.file = None;
        slot.generation = (slot.generation + 1) % OpTag::GENERATIONS;
        self.files.free.push(id.slot);
        let Some(fd) = fd else { return };
        // Giving up the space of a large file takes the file system a while, so it is done by a thread of the kernel.
        let close = opcode::Close::new(types::Fd(fd.into_raw_fd())).build().flags(squeue::Flags::ASYNC);
        let tag = OpTag { kind: OpKind::CloseFile, slot: 0, generation: 0 };
        // SAFETY: no memory of ours is part of it; the descriptor is the operation's from now on.
        unsafe { self.submit(close, tag) };
    }
}

/// A file that is open and does not close.
fn usable(file: &mut File) -> Option<(&mut File, types::Fd)> {
    let fd = file.fd.as_ref().filter(|_| !file.closing)?.as_raw_fd();
    Some((file, types::Fd(fd)))
}

impl Drop for Reactor {
    /// Waits for the kernel to be done with the memory of reads and writes: the end of a ring does not.
    fn drop(&mut self) {
        let mut events = Vec::new();
        while !self.files.are_idle() {
            if self.turn(true, &mut events).is_err() {
                // Nothing says any more when it is done: the memory stays.
                std::mem::forget(std::mem::take(&mut self.mem.chunks));
                std::mem::forget(std::mem::take(&mut self.files));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::buf::Source;
    use crate::limits::CHUNK_LEN;
    use crate::os::spill_dir::open_spill_dir;
    use crate::reactor::{Waker, probe};

    /// The next event of a file.
    fn next(reactor: &mut Reactor) -> (FileId, FileEvent) {
        let mut events = Vec::new();
        while events.is_empty() {
            reactor.turn(true, &mut events).unwrap();
        }
        match events[..] {
            [Event::File(file, event)] => (file, event),
            _ => panic!("{events:?}"),
        }
    }

    fn chunk(reactor: &mut Reactor, byte: u8) -> BufView {
        let chunk = reactor.mem.chunks.take();
        reactor.mem.chunks.bytes_mut(chunk).fill(byte);
        BufView { source: Source::Chunk(chunk), off: 0, len: u32::try_from(CHUNK_LEN).unwrap() }
    }

    fn with_a_file(dir: &tempfile::TempDir) -> (Reactor, FileId) {
        let mut reactor = Reactor::new(probe().unwrap(), 4, Waker::new().unwrap()).unwrap();
        assert_eq!(reactor.open_file(), None, "no directory yet");
        reactor.set_spill_dir(Arc::new(open_spill_dir(dir.path()).unwrap()));
        let file = reactor.open_file().unwrap();
        assert_eq!(next(&mut reactor), (file, FileEvent::Opened(Ok(()))));
        (reactor, file)
    }

    #[test]
    fn what_was_written_is_read_and_its_space_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (mut reactor, file) = with_a_file(&dir);
        let views = [chunk(&mut reactor, 1), chunk(&mut reactor, 2)];
        reactor.write_file(file, &views, 4_096);
        assert_eq!(next(&mut reactor), (file, FileEvent::Wrote(Ok(2 * CHUNK_LEN))));
        let into = [chunk(&mut reactor, 9), chunk(&mut reactor, 9)];
        reactor.read_file(file, &into, 4_096);
        assert_eq!(next(&mut reactor), (file, FileEvent::Read(Ok(2 * CHUNK_LEN))));
        for (got, want) in into.iter().zip(views) {
            assert!(reactor.mem.bytes(*got) == reactor.mem.bytes(want));
        }
        let fd = reactor.files.get(file).unwrap().fd.as_ref().unwrap().try_clone().unwrap();
        let meta = std::fs::File::from(fd);
        let before = meta.metadata().unwrap().blocks();
        reactor.punch_file(file, 0, 8 * CHUNK_LEN as u64);
        assert_eq!(next(&mut reactor), (file, FileEvent::Punched(Ok(()))));
        assert!(before > 0 && meta.metadata().unwrap().blocks() < before);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
        views.into_iter().chain(into).for_each(|view| reactor.mem.release(view.source));
        assert_eq!(reactor.mem.chunks.in_use(), 0);
    }

    #[test]
    fn a_file_that_closes_keeps_its_memory_until_its_operations_have_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (mut reactor, file) = with_a_file(&dir);
        let view = chunk(&mut reactor, 1);
        reactor.write_file(file, &[view], 0);
        reactor.close_file(file);
        reactor.mem.release(view.source);
        assert_eq!(reactor.mem.chunks.in_use(), 1);
        let mut events = Vec::new();
        while !reactor.files.are_idle() {
            reactor.turn(true, &mut events).unwrap();
        }
        assert!(events.is_empty() && reactor.mem.chunks.in_use() == 0, "{events:?}");
        let other = reactor.open_file().unwrap();
        assert!(other != file, "a slot is never the same twice");
    }
}
