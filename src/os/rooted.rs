//! Files of another root directory, opened so that no symbolic link leads out of it.
//!
//! Nothing here changes this process's own root. The asymmetry to know: in `/` links of /proc work, in any other
//! root they do not.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

/// Opens a regular file for reading.
///
/// # Errors
/// The kernel's; `InvalidInput` when it is no regular file.
pub fn open(root: &Path, path: &str) -> io::Result<File> {
    regular(open_any(root, path, OFlag::O_RDONLY)?)
}

/// Opens a regular file for writing: made when it is missing, emptied when it is not.
///
/// # Errors
/// As [`open`].
pub fn create(root: &Path, path: &str) -> io::Result<File> {
    let file = regular(open_any(root, path, OFlag::O_WRONLY | OFlag::O_CREAT)?)?;
    file.set_len(0)?;
    Ok(file)
}

fn open_any(root: &Path, path: &str, flags: OFlag) -> io::Result<File> {
    // Nonblocking, so that a pipe without a peer cannot stop the caller.
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let path = Path::new("/").join(path);
    if root == Path::new("/") {
        let mut options = File::options();
        options.read(!flags.contains(OFlag::O_WRONLY)).write(flags.contains(OFlag::O_WRONLY));
        options.create(flags.contains(OFlag::O_CREAT)).truncate(false).mode(0o644);
        return options.custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits()).open(path);
    }
    let directory = File::open(root)?;
    let mode = if flags.contains(OFlag::O_CREAT) { Mode::from_bits_truncate(0o644) } else { Mode::empty() };
    let how = OpenHow::new().flags(flags).mode(mode).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(openat2(directory, &path, how)?.into())
}

fn regular(file: File) -> io::Result<File> {
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let what = match kind {
        _ if kind.is_dir() => "is a directory",
        _ if kind.is_fifo() => "is a pipe",
        _ => "is not a regular file",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn links_stay_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        std::os::unix::fs::symlink("../../secret", root.join("etc/up")).unwrap();
        std::os::unix::fs::symlink("/etc/plain", root.join("etc/absolute")).unwrap();
        create(&root, "/etc/plain").unwrap().write_all(b"inside").unwrap();
        assert!(open(&root, "/etc/up").is_err());
        let mut text = String::new();
        open(&root, "etc/absolute").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        create(&root, "/etc/plain").unwrap();
        assert_eq!(std::fs::read(root.join("etc/plain")).unwrap(), b"");
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        assert_eq!(open(dir.path(), "/pipe").unwrap_err().to_string(), "is a pipe");
        assert_eq!(open(dir.path(), "/").unwrap_err().to_string(), "is a directory");
        assert!(create(dir.path(), "/pipe").is_err());
        assert!(open(Path::new("/"), "/dev/null").is_err());
    }
}
