//! Users and groups by name or number, out of the text of a passwd(5) and a group(5) file.
//!
//! No file is opened here. The asymmetry to know: a number needs no line in either file, a name does; and a name
//! made of digits is looked up as a name first, as login programs do.

use crate::os::process::Identity;
use crate::wire::hyper::Process;

use super::command::{Refusal, refuse};

/// Who a process runs as, and where its home is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) identity: Identity,
    pub(super) home: String,
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("/");
        Some(User { name, uid, gid, home })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group { name, gid, members: fields.next().unwrap_or("") })
    })
}

/// Finds the account a process asks for; without a user it is the one with `own_uid`.
pub(super) fn resolve(process: &Process, own_uid: u32, passwd: &str, group: &str) -> Result<Account, Refusal> {
    let own_uid = own_uid.to_string();
    let named = process.user.as_deref().filter(|user| !user.is_empty());
    let asked = named.unwrap_or(&own_uid);
    let found = users(passwd).find(|user| user.name == asked);
    let found = found.or_else(|| asked.parse().ok().and_then(|uid: u32| users(passwd).find(|user| user.uid == uid)));
    let (uid, own_gid) = match (&found, asked.parse()) {
        (Some(user), _) => (user.uid, user.gid),
        (None, Ok(uid)) => (uid, 0),
        (None, Err(_)) => return refuse(format!("no user '{asked}' in the container's /etc/passwd")),
    };
    let gid = match process.group.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => group_id(name, group)?,
        None => own_gid,
    };
    let mut extra: Vec<u32> = Vec::new();
    if let Some(user) = found.as_ref().filter(|_| named.is_some()) {
        let member = groups(group).filter(|group| group.members.split(',').any(|name| name == user.name));
        extra.extend(member.map(|group| group.gid));
    }
    for name in &process.additional_groups {
        extra.push(group_id(name, group)?);
    }
    extra.sort_unstable();
    extra.dedup();
    let home = found.map_or("/", |user| user.home).to_owned();
    Ok(Account { identity: Identity { uid, gid, groups: extra }, home })
}

fn group_id(name: &str, group: &str) -> Result<u32, Refusal> {
    match groups(group).find(|group| group.name == name) {
        Some(group) => Ok(group.gid),
        None => name.parse().or_else(|_| refuse(format!("no group '{name}' in the container's /etc/group"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n\nbroken line\nana:x:1000:100:Ana:/users/ana:/bin/sh\n42:x:7:8::/seven:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:ana,bob\nusers:x:100:\nstaff:x:50:ana\n";

    fn account(user: Option<&str>, group: Option<&str>, extra: &[&str]) -> Result<Account, Refusal> {
        let process = Process {
            user: user.map(Into::into),
            group: group.map(Into::into),
            additional_groups: extra.iter().map(ToString::to_string).collect(),
            ..Process::default()
        };
        resolve(&process, 0, PASSWD, GROUP)
    }

    fn ids(account: Account) -> (u32, u32, Vec<u32>, String) {
        (account.identity.uid, account.identity.gid, account.identity.groups, account.home)
    }

    #[test]
    fn names_numbers_and_nothing() {
        assert_eq!(ids(account(None, None, &[]).unwrap()), (0, 0, vec![], "/root".into()));
        assert_eq!(ids(account(Some(""), None, &[]).unwrap()), (0, 0, vec![], "/root".into()));
        assert_eq!(ids(account(Some("ana"), None, &[]).unwrap()), (1000, 100, vec![10, 50], "/users/ana".into()));
        assert_eq!(ids(account(Some("1000"), None, &[]).unwrap()), (1000, 100, vec![10, 50], "/users/ana".into()));
        assert_eq!(ids(account(Some("4711"), None, &[]).unwrap()), (4711, 0, vec![], "/".into()));
        assert_eq!(ids(account(Some("42"), None, &[]).unwrap()), (7, 8, vec![], "/seven".into()));
    }

    #[test]
    fn groups_are_added_once() {
        let found = account(Some("ana"), Some("users"), &["wheel", "99", "99"]).unwrap();
        assert_eq!(ids(found), (1000, 100, vec![10, 50, 99], "/users/ana".into()));
        assert_eq!(ids(account(Some("0"), Some("5"), &[]).unwrap()).1, 5);
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(account(Some("nobody-here"), None, &[]).unwrap_err().0.contains("nobody-here"));
        assert!(account(None, Some("no-group"), &[]).is_err());
        assert!(account(None, None, &["no-group"]).is_err());
        assert!(account(Some("-1"), None, &[]).is_err());
    }
}
