//! The directory that spill files are made in: opened once, and tried out.
//!
//! What it returns is good for making files without a name and for nothing else. The asymmetry to know: a directory
//! that an operator named must do, the default one may fail to.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

/// Why there can be no spill files. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", dir.display())]
pub struct SpillDirError {
    dir: PathBuf,
    why: String,
}

/// Opens a directory and makes a first file in it, which goes at once.
///
/// # Errors
/// It is none, cannot be written to, or its file system has no files without a name.
pub fn open_spill_dir(dir: &Path) -> Result<OwnedFd, SpillDirError> {
    let refused = |errno| SpillDirError { dir: dir.to_path_buf(), why: explain(errno) };
    let opened = open(dir, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(refused)?;
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(opened.as_fd(), c".", flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(refused)?;
    let written = std::fs::File::from(file).write_all(&[0; 4096]);
    written.map_err(|error| refused(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))?;
    Ok(opened)
}

fn explain(errno: Errno) -> String {
    match errno {
        Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL => {
            "its file system has no files without a name (O_TMPFILE): name a directory on ext4, XFS, Btrfs or tmpfs \
             with --spill-dir"
                .to_owned()
        }
        Errno::ENOENT | Errno::ENOTDIR => {
            format!("{errno}: make the directory, or name another one with --spill-dir")
        }
        Errno::EACCES | Errno::EPERM | Errno::EROFS => {
            format!("{errno}: let the daemon's user write there, or name another directory with --spill-dir")
        }
        Errno::ENOSPC | Errno::EDQUOT => format!("{errno}: make room, or name another directory with --spill-dir"),
        errno => format!("{errno}: name another directory with --spill-dir"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_cannot_serve_is_refused_with_what_to_do() {
        for (dir, part) in [("/nowhere/at/all", "make the directory"), ("/dev/null", "make the directory")] {
            let error = open_spill_dir(Path::new(dir)).unwrap_err().to_string();
            assert!(error.starts_with(dir) && error.contains(part) && error.contains("--spill-dir"), "{error}");
        }
        let error = open_spill_dir(Path::new("/proc")).unwrap_err().to_string();
        assert!(error.contains("--spill-dir"), "{error}");
        assert!(explain(Errno::EOPNOTSUPP).contains("O_TMPFILE"));
    }

    #[test]
    fn a_directory_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        open_spill_dir(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
