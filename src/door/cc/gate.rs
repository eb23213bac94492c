//! Who may speak on the proxy socket, and how many connections a user may have: asked of the kernel (`SO_PEERCRED`,
//! `SO_PEERGROUPS`), whatever the socket's mode says.
//!
//! The daemon's user and root always may. Without lists of its own the socket's file decides besides: its owner and
//! the members of its group. The asymmetry to know: who is not allowed is closed without a word, who has too many
//! connections is told so.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::warn;

use crate::coordinator::{Coordinator, Excess, Presence};
use crate::door::sparing::Sparing;
use crate::limits::TURNED_AWAY_MAX;
use crate::os::fds::{PeerCredentials, peer_credentials, peer_groups};
use crate::wire::cc1;
use crate::wire::cc2::{self, ErrorResponse, Header, Kind};

/// How long somebody who is turned away has for the request that is answered with the reason.
const PARTING_PATIENCE: Duration = Duration::from_secs(1);

/// Who may connect, besides the daemon's user and root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// These users and the members of these groups.
    Listed {
        /// Users.
        uids: Vec<u32>,
        /// Groups.
        gids: Vec<u32>,
    },
    /// The owner and the group of the file at this path, as they are when somebody connects.
    AsFile(PathBuf),
}

impl Allowed {
    /// Whether somebody may connect, whose further groups `groups` finds out.
    fn admits(&self, peer: PeerCredentials, groups: impl FnOnce() -> io::Result<Vec<u32>>) -> io::Result<bool> {
        if peer.uid == 0 || peer.uid == nix::unistd::geteuid().as_raw() {
            return Ok(true);
        }
        let (file_uid, file_gid);
        let (uids, gids): (&[u32], &[u32]) = match self {
            Allowed::Listed { uids, gids } => (uids, gids),
            Allowed::AsFile(path) => {
                let file = std::fs::metadata(path)?;
                (file_uid, file_gid) = ([file.uid()], [file.gid()]);
                (&file_uid, &file_gid)
            }
        };
        if uids.contains(&peer.uid) || gids.contains(&peer.gid) {
            return Ok(true);
        }
        Ok(!gids.is_empty() && groups()?.iter().any(|gid| gids.contains(gid)))
    }
}

/// The proxy socket's gate.
#[derive(Debug)]
pub struct Gate {
    allowed: Allowed,
    log: Sparing,
    /// For those that are told why they are turned away.
    parting: Arc<Semaphore>,
}

impl Gate {
    /// A gate for these.
    pub fn new(allowed: Allowed) -> Gate {
        Gate { allowed, log: Sparing::default(), parting: Arc::new(Semaphore::new(TURNED_AWAY_MAX)) }
    }

    /// Lets a connection in, or turns it away.
    pub(super) fn admit(&self, stream: UnixStream, coordinator: &Coordinator) -> Option<(UnixStream, Visitor)> {
        let peer = match peer_credentials(stream.as_fd()) {
            Ok(peer) => peer,
            Err(error) => {
                self.refuse(coordinator, |unsaid| {
                    warn!(%error, unsaid, "a client without credentials was turned away");
                });
                return None;
            }
        };
        let PeerCredentials { pid, uid, gid } = peer;
        match self.allowed.admits(peer, || peer_groups(stream.as_fd())) {
            Ok(true) => {}
            Ok(false) => {
                self.refuse(coordinator, |unsaid| {
                    warn!(pid, uid, gid, unsaid, "a client was turned away: see --allow-uid and --allow-gid");
                });
                return None;
            }
            Err(error) => {
                self.refuse(coordinator, |unsaid| {
                    warn!(pid, uid, gid, %error, unsaid, "a client was turned away: whether it may is not known");
                });
                return None;
            }
        }
        match coordinator.arrive(uid) {
            Ok(presence) => Some((stream, Visitor { peer, presence })),
            Err(excess) => {
                self.refuse(coordinator, |unsaid| warn!(pid, uid, unsaid, "a client was turned away: {excess}"));
                // With nobody to tell it, it sees its connection close.
                if let Ok(place) = Arc::clone(&self.parting).try_acquire_owned() {
                    tokio::task::spawn_local(part(stream, excess, place));
                }
                None
            }
        }
    }

    fn refuse(&self, coordinator: &Coordinator, say: impl FnOnce(u64)) {
        coordinator.count(|counters| counters.clients_refused += 1);
        if let Some(unsaid) = self.log.may_say(Instant::now()) {
            say(unsaid);
        }
    }
}

/// Somebody who was let in.
#[derive(Debug)]
pub(super) struct Visitor {
    pub(super) peer: PeerCredentials,
    pub(super) presence: Presence,
}

/// Answers the first request of a connection with the reason why it ends, in its own protocol.
async fn part(mut stream: UnixStream, why: Excess, _place: OwnedSemaphorePermit) {
    let answered = async {
        let mut first = Vec::new();
        while first.len() < cc2::HEADER_LEN {
            if super::receive(&stream, |bytes| first.extend_from_slice(bytes)).await? == 0 {
                break;
            }
        }
        if let Some(answer) = refusal(&first, &why) {
            stream.write_all(&answer).await?;
        }
        Ok::<(), io::Error>(())
    };
    // Whoever says nothing in that time, or has left, is told nothing.
    let _ = timeout(PARTING_PATIENCE, answered).await;
}

/// The answer to a request that begins with these bytes; `None` where it is no request.
fn refusal(first: &[u8], why: &Excess) -> Option<Vec<u8>> {
    if !first.starts_with(&[0, 2]) {
        return (!first.is_empty()).then(|| cc1::encode(&cc1::Response::fail(why.to_string())));
    }
    let Kind::Command(command) = Header::decode(*first.first_chunk()?).ok()?.kind else { return None };
    let payload = serde_json::to_vec(&ErrorResponse { msg: why.to_string() }).ok()?;
    Some(cc2::encode(Kind::Response { command, error: true }, &payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32) -> PeerCredentials {
        PeerCredentials { pid: 1, uid, gid }
    }

    fn none() -> io::Result<Vec<u32>> {
        Ok(Vec::new())
    }

    #[test]
    fn root_and_the_daemons_user_always_may() {
        let nobody = Allowed::Listed { uids: vec![], gids: vec![] };
        for uid in [0, nix::unistd::geteuid().as_raw()] {
            assert!(nobody.admits(peer(uid, 77), || panic!("nobody has to ask")).unwrap());
        }
        assert!(!nobody.admits(peer(4_242, 77), none).unwrap());
    }

    #[test]
    fn a_list_is_of_users_and_of_groups_of_either_kind() {
        let listed = Allowed::Listed { uids: vec![4_242], gids: vec![77] };
        assert!(listed.admits(peer(4_242, 1), none).unwrap());
        assert!(listed.admits(peer(4_243, 77), none).unwrap());
        assert!(listed.admits(peer(4_243, 1), || Ok(vec![5, 77])).unwrap());
        assert!(!listed.admits(peer(4_243, 1), || Ok(vec![5, 78])).unwrap());
        assert!(listed.admits(peer(4_243, 1), || Err(io::Error::other("hidden"))).is_err());
    }

    #[test]
    fn a_file_s_group_may() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of_file = file.as_file().metadata().unwrap();
        let allowed = Allowed::AsFile(file.path().to_owned());
        assert!(allowed.admits(peer(of_file.uid(), 4_242), none).unwrap());
        assert!(allowed.admits(peer(4_242, of_file.gid()), none).unwrap());
        assert!(allowed.admits(peer(4_242, 4_242), || Ok(vec![of_file.gid()])).unwrap());
        assert!(!allowed.admits(peer(4_242, 4_242), none).unwrap());
        assert!(Allowed::AsFile("/nonexistent/socket".into()).admits(peer(4_242, 4_242), none).is_err());
    }

    #[test]
    fn the_reason_comes_in_the_client_s_protocol() {
        let why = Excess::Clients { uid: 7, most: 2 };
        let of_one = refusal(&[0, 0, 0, 30, 0, 0, 0, 0, b'{'], &why).unwrap();
        assert!(String::from_utf8_lossy(&of_one[8..]).contains("--max-clients-per-user"));
        let asked = cc2::encode(Kind::Command(cc2::Command::AttachVm), b"{}");
        let mut decoder = cc2::Decoder::default();
        decoder.push(&refusal(&asked, &why).unwrap());
        let answer = decoder.next_frame().unwrap().unwrap();
        assert_eq!(answer.kind, Kind::Response { command: cc2::Command::AttachVm, error: true });
        assert!(String::from_utf8_lossy(&answer.payload).contains("--max-clients-per-user"));
        assert_eq!(refusal(b"", &why), None);
        assert_eq!(refusal(&asked[..11], &why), None);
    }
}
