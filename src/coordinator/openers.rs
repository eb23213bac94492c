//! Threads that open VMs' sockets: a path on a file system that hangs holds up its own request, and neither others nor
//! the end of the daemon.
//!
//! Of such threads there is a bounded number. The asymmetry to know: a thread that is done stays for the next request
//! if no other does, so that it takes a thread of its own only where one is held up; at rest there is one, asleep.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::os::guest_socket::{GuestSocket, PathError};

/// What opening came to.
pub(super) type Opened = Result<GuestSocket, PathError>;

/// Paths to open one after the other, and who waits for each.
#[derive(Debug)]
struct Request {
    paths: Vec<(String, oneshot::Sender<Opened>)>,
    /// The client's user.
    uid: u32,
    place: OwnedSemaphorePermit,
}

/// What the threads share.
#[derive(Debug, Default)]
struct Desk {
    /// A thread sleeps here for the next request.
    has_sleeper: bool,
    /// The request it is to take.
    request: Option<Request>,
}

#[derive(Debug)]
struct Shared {
    /// Directories whose sockets every client may name.
    vm_dirs: Vec<PathBuf>,
    desk: Mutex<Desk>,
    filled: Condvar,
}

/// The threads.
#[derive(Debug)]
pub(super) struct Openers {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
}

impl Openers {
    /// Threads that open what `vm_dirs` allow, at most `most` of them.
    pub(super) fn new(vm_dirs: Vec<PathBuf>, most: usize) -> Openers {
        let shared = Shared { vm_dirs, desk: Mutex::default(), filled: Condvar::new() };
        Openers { shared: Arc::new(shared), places: Arc::new(Semaphore::new(most)) }
    }

    /// Opens paths for a client with this user ID, in their order: here where that takes no time, and otherwise on a
    /// thread. Waits for the thread, not for them.
    ///
    /// # Errors
    /// The kernel's: no thread.
    pub(super) async fn open<const N: usize>(
        &self,
        paths: [&str; N],
        uid: u32,
    ) -> io::Result<[oneshot::Receiver<Opened>; N]> {
        let mut asked = Vec::new();
        let answers = paths.map(|path| {
            let (opened, is_opened) = oneshot::channel();
            match GuestSocket::open_at_once(path, uid) {
                // Whoever waits is the caller.
                Some(socket) => drop(opened.send(Ok(socket))),
                None => asked.push((path.to_owned(), opened)),
            }
            is_opened
        });
        if !asked.is_empty() {
            let place = Arc::clone(&self.places).acquire_owned().await.map_err(io::Error::other)?;
            self.hand_over(Request { paths: asked, uid, place })?;
        }
        Ok(answers)
    }

    /// Gives a request to the thread that sleeps, or to a new one.
    fn hand_over(&self, request: Request) -> io::Result<()> {
        let mut desk = self.shared.desk.lock().unwrap_or_else(PoisonError::into_inner);
        if desk.has_sleeper {
            desk.has_sleeper = false;
            desk.request = Some(request);
            self.shared.filled.notify_one();
            return Ok(());
        }
        drop(desk);
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name("open".to_owned()).spawn(move || shared.serve(request)).map(drop)
    }
}

impl Shared {
    /// Serves requests until another thread sleeps already.
    fn serve(&self, first: Request) {
        let mut next = Some(first);
        while let Some(request) = next {
            for (path, opened) in request.paths {
                // Nobody waits any more: the socket closes.
                let _ = opened.send(GuestSocket::open(&path, request.uid, &self.vm_dirs));
            }
            drop(request.place);
            next = self.sleep();
        }
    }

    /// Waits for the next request; `None` when another thread does.
    fn sleep(&self) -> Option<Request> {
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        if desk.has_sleeper || desk.request.is_some() {
            return None;
        }
        desk.has_sleeper = true;
        let is_empty = |desk: &mut Desk| desk.request.is_none();
        let mut desk = self.filled.wait_while(desk, is_empty).unwrap_or_else(PoisonError::into_inner);
        desk.request.take()
    }
}
