//! What a report says about where and when it was made.

use std::fs;
use std::process::Command;
use std::time::SystemTime;

use anyhow::Result;
use nix::unistd::{SysconfVar, sysconf};

/// Today's date in UTC, as year-month-day.
pub(crate) fn today() -> Result<String> {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    Ok(date(seconds / 86_400))
}

/// The date of a day counted from 1970-01-01: years begin in March, so that leap days come last.
fn date(day: u64) -> String {
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, over) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + over)
}

/// The commit of the tree, marked where files differ from it.
pub(crate) fn commit() -> String {
    let args = ["describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"];
    let out = Command::new("git").args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let text = out.ok().filter(|out| out.status.success()).map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    text.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// The kernel's release.
pub(crate) fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// CPUs of the machine, whether this process may use them or not.
pub(crate) fn cpus() -> usize {
    let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    online.and_then(|count| usize::try_from(count).ok()).unwrap_or(1)
}

/// The processor's name.
pub(crate) fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")).and_then(|rest| rest.split_once(": "));
    name.map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        let dates = [0, 59, 11_016, 19_782, 20_512].map(date);
        assert_eq!(dates, ["1970-01-01", "1970-03-01", "2000-02-29", "2024-02-29", "2026-02-28"]);
    }
}
