//! Which shard a new VM goes to: the one that works least, by the CPU time it used, not by its number of VMs.
//!
//! Pure: the time and the shards' CPU clocks are arguments. It has no timer; it measures when it is asked to, and what
//! nobody asked about for long is the mean of that time. A load is a share of one CPU, written as CPU time per second.
//! The asymmetry to know: what a shard did is measured, what a VM that was just placed will do is expected. The
//! expectation goes as fast as the measurement that replaces it comes, so no VM counts twice.

use std::time::Duration;

use tokio::time::Instant;

/// How far the measured load looks back: what was `n` times this long ago counts for `e^-n`.
const MEMORY: Duration = Duration::from_secs(5);

/// Shortest time a measurement is made over. A shard that opens a few links is busy for less, and says nothing by it.
const WINDOW_MIN: Duration = Duration::from_millis(100);

/// What a new VM is expected to bring: a tenth of a CPU. Chosen, not measured: some bring nothing, some all there is.
/// More spreads a storm of new VMs sooner over shards that have work already, less later.
const EXPECTED: Duration = Duration::from_millis(100);

/// Loads that differ by up to half a VM are the same, and the number of VMs decides.
const SAME: Duration = Duration::from_millis(50);

/// All of one CPU.
const ALL: Duration = Duration::from_secs(1);

/// One shard.
#[derive(Debug, Clone, Default)]
struct Shard {
    vms: usize,
    /// Its CPU clock when it was last read; `None`: it could not be.
    used: Option<Duration>,
    measured: Duration,
    /// What VMs are still expected to bring that is not in `measured`.
    expected: Duration,
    /// It serves nobody any more.
    failed: bool,
}

impl Shard {
    fn load(&self) -> Duration {
        self.measured + self.expected
    }
}

/// What is known of the shards' loads.
#[derive(Debug)]
pub(super) struct Placement {
    shards: Vec<Shard>,
    /// When the clocks were last read.
    at: Option<Instant>,
}

impl Placement {
    pub(super) fn new(shards: usize) -> Placement {
        Placement { shards: vec![Shard::default(); shards], at: None }
    }

    /// Takes in what the shards' CPU clocks say now. Does nothing, and reads none, when that was done a moment ago.
    pub(super) fn measure(&mut self, now: Instant, clock: impl Fn(usize) -> Option<Duration>) {
        let window = self.at.map(|at| now.saturating_duration_since(at));
        if window.is_some_and(|window| window < WINDOW_MIN) {
            return;
        }
        self.at = Some(now);
        let window = window.unwrap_or_default().as_secs_f64();
        let old = (-window / MEMORY.as_secs_f64()).exp();
        for (number, shard) in self.shards.iter_mut().enumerate() {
            let before = std::mem::replace(&mut shard.used, clock(number));
            shard.expected = shard.expected.mul_f64(old);
            // Without a measurement before there is no window; with one it is not short.
            if let (Some(before), Some(used)) = (before, shard.used) {
                let share = used.saturating_sub(before).div_f64(window).min(ALL);
                shard.measured = shard.measured.mul_f64(old) + share.mul_f64(1.0 - old);
            }
        }
    }

    /// Chooses the shard for one more VM, and counts it there. `None`: every shard has failed.
    ///
    /// Of the shards whose load is the least, or as good as that, it is the one with the fewest VMs.
    pub(super) fn place(&mut self) -> Option<usize> {
        let serving = || self.shards.iter().enumerate().filter(|(_, shard)| !shard.failed);
        let least = serving().map(|(_, shard)| shard.load()).min()?;
        let low = serving().filter(|(_, shard)| shard.load() <= least + SAME);
        let (number, _) = low.min_by_key(|(_, shard)| (shard.vms, shard.load()))?;
        let shard = &mut self.shards[number];
        shard.vms += 1;
        shard.expected += EXPECTED;
        Some(number)
    }

    /// A VM has left its shard, and takes along what is expected of one of the shard's VMs.
    pub(super) fn leave(&mut self, shard: usize) {
        let shard = &mut self.shards[shard];
        let left = shard.vms.saturating_sub(1);
        let (Ok(left_of), Ok(of)) = (u32::try_from(left), u32::try_from(shard.vms.max(1))) else { return };
        shard.expected = shard.expected * left_of / of;
        shard.vms = left;
    }

    /// A shard has failed: no VM goes there any more.
    pub(super) fn fail(&mut self, shard: usize) {
        self.shards[shard].failed = true;
    }

    /// A shard's load, measured and expected, in thousandths of a CPU.
    pub(super) fn permille(&self, shard: usize) -> (u64, u64) {
        let Shard { measured, expected, .. } = self.shards[shard];
        let [measured, expected] = [measured, expected].map(|load| u64::try_from(load.as_millis()).unwrap_or(u64::MAX));
        (measured, expected)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A host whose shards are as busy as it is told.
    struct Host {
        placement: Placement,
        now: Instant,
        clocks: Vec<Duration>,
    }

    impl Host {
        fn new(shards: usize) -> Host {
            let mut host =
                Host { placement: Placement::new(shards), now: Instant::now(), clocks: vec![Duration::ZERO; shards] };
            host.pass(Duration::ZERO, &vec![0.0; shards]);
            host
        }

        /// Time passes in which each shard uses a share of a CPU, then a measurement is made.
        fn pass(&mut self, time: Duration, shares: &[f64]) {
            self.now += time;
            self.clocks.iter_mut().zip(shares).for_each(|(clock, &share)| *clock += time.mul_f64(share));
            self.placement.measure(self.now, |shard| Some(self.clocks[shard]));
        }

        /// What `pass` does, in measurements a second apart.
        fn pass_seconds(&mut self, seconds: u32, shares: &[f64]) {
            (0..seconds).for_each(|_| self.pass(Duration::from_secs(1), shares));
        }

        fn place(&mut self, vms: usize) -> Vec<usize> {
            (0..vms).map(|_| self.placement.place().unwrap()).collect()
        }

        fn loads(&self) -> Vec<Duration> {
            self.placement.shards.iter().map(Shard::load).collect()
        }

        fn vms(&self) -> Vec<usize> {
            self.placement.shards.iter().map(|shard| shard.vms).collect()
        }

        /// How far the fullest and the emptiest shard are apart.
        fn spread(&self) -> usize {
            let vms = self.vms();
            vms.iter().max().unwrap() - vms.iter().min().unwrap()
        }
    }

    fn near(load: Duration, share: f64) -> bool {
        (load.as_secs_f64() - share).abs() < 0.01
    }

    #[test]
    fn a_load_comes_and_goes_within_seconds() {
        let mut host = Host::new(2);
        host.pass_seconds(5, &[0.8, 0.0]);
        assert!(near(host.loads()[0], 0.8 * (1.0 - (-1.0_f64).exp())), "{:?}", host.loads());
        host.pass_seconds(25, &[0.8, 0.0]);
        assert!(near(host.loads()[0], 0.8) && host.loads()[1].is_zero(), "{:?}", host.loads());
        host.pass_seconds(5, &[0.0, 0.8]);
        assert!(near(host.loads()[0], 0.8 * (-1.0_f64).exp()), "{:?}", host.loads());
        assert_eq!(host.placement.permille(0).0, u64::try_from(host.loads()[0].as_millis()).unwrap());
    }

    #[test]
    fn how_often_it_is_measured_changes_nothing() {
        let (mut often, mut once) = (Host::new(1), Host::new(1));
        (0..100).for_each(|_| often.pass(Duration::from_millis(100), &[0.5]));
        once.pass(Duration::from_secs(10), &[0.5]);
        assert!(near(often.loads()[0], once.loads()[0].as_secs_f64()), "{:?} {:?}", often.loads(), once.loads());
    }

    #[test]
    fn a_moment_is_no_measurement() {
        let mut host = Host::new(1);
        for _ in 0..99 {
            host.pass(Duration::from_millis(1), &[1.0]);
            assert!(host.loads()[0].is_zero(), "{:?}", host.loads());
        }
        host.placement.measure(host.now, |_| panic!("it has just been measured"));
        host.pass(Duration::from_millis(1), &[1.0]);
        assert!(near(host.loads()[0], 1.0 - (-0.02_f64).exp()), "{:?}", host.loads());
        let before = host.loads();
        host.placement.measure(host.now.checked_sub(ALL).unwrap(), |_| panic!("time went back"));
        assert_eq!(host.loads(), before);
    }

    #[test]
    fn a_long_time_nobody_asked_about_is_its_mean() {
        let mut host = Host::new(2);
        host.pass(Duration::from_secs(10 * 365 * 86_400), &[0.25, 0.0]);
        assert!(near(host.loads()[0], 0.25) && host.loads()[1].is_zero(), "{:?}", host.loads());
    }

    #[test]
    fn a_clock_that_cannot_be_read_or_is_wrong_measures_nothing() {
        let mut placement = Placement::new(1);
        let mut now = Instant::now();
        for clock in [Some(0), None, Some(3_600), Some(0), None, None] {
            placement.measure(now, |_| clock.map(Duration::from_secs));
            assert!(placement.shards[0].load().is_zero(), "{clock:?}: {placement:?}");
            now += ALL;
        }
        for clock in [0, 3_600] {
            placement.measure(now, |_| Some(Duration::from_secs(clock)));
            now += ALL;
        }
        assert!(placement.shards[0].load() <= ALL, "a thread has one CPU: {placement:?}");
    }

    #[test]
    fn the_idle_one_of_two_takes_vms_until_they_outweigh_the_busy_one() {
        let mut host = Host::new(2);
        host.place(10);
        (0..4).for_each(|_| host.placement.leave(0));
        assert_eq!(host.vms(), [1, 5]);
        host.pass_seconds(60, &[0.9, 0.0]);
        assert!(near(host.loads()[0], 0.9) && near(host.loads()[1], 0.0), "{:?}", host.loads());
        let placed = host.place(12);
        // Nine are expected to bring 0.9; from there on the busy one has fewer.
        assert_eq!(placed, [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0]);
        // They turn out to bring nothing: the next go to the idle one again.
        host.pass_seconds(30, &[0.9, 0.0]);
        assert_eq!(host.place(5), [1; 5]);
    }

    #[test]
    fn loads_that_hardly_differ_leave_it_to_the_counts() {
        let mut host = Host::new(3);
        host.place(4);
        host.pass_seconds(60, &[0.0, 0.01, 0.02]);
        assert_eq!(host.place(5), [1, 2, 0, 1, 2]);
    }

    #[test]
    fn who_leaves_takes_along_what_is_expected_of_it() {
        let mut host = Host::new(2);
        host.place(100);
        (0..50).for_each(|_| host.placement.leave(0));
        assert_eq!((host.loads()[0], host.loads()[1]), (Duration::ZERO, EXPECTED * 50));
        assert_eq!(host.place(50), [0; 50]);
    }

    #[test]
    fn a_shard_that_failed_is_never_chosen() {
        let mut host = Host::new(3);
        host.placement.fail(0);
        host.pass_seconds(10, &[0.0, 0.9, 0.8]);
        for _ in 0..100 {
            assert_ne!(host.placement.place(), Some(0));
        }
        host.placement.fail(2);
        assert_eq!(host.placement.place(), Some(1));
        host.placement.fail(1);
        assert_eq!(host.placement.place(), None);
    }

    proptest! {
        #[test]
        fn a_storm_on_an_idle_host_spreads_evenly(
            shards in 1_usize..17,
            storm in proptest::collection::vec((0_u64..20_000, 0.0..0.04), 0..300),
        ) {
            let mut host = Host::new(shards);
            for (millis, noise) in storm {
                let shares: Vec<f64> = (0..shards).map(|shard| if shard % 2 == 0 { noise } else { 0.0 }).collect();
                // Most come right after the one before.
                host.pass(Duration::from_millis(if millis < 10_000 { millis / 500 } else { millis }), &shares);
                host.placement.place().unwrap();
                prop_assert!(host.spread() <= 1, "{:?}", host.vms());
            }
        }

        #[test]
        fn a_busy_shard_gets_no_vm_while_an_idle_one_has_less_expected_of_it(
            busy in 0.1..1.0,
            (on_busy, on_idle) in (1_usize..5, 0_usize..50),
            gaps in proptest::collection::vec(0_u64..500, 1..50),
        ) {
            let mut host = Host::new(2);
            host.placement.shards[0].vms = on_busy;
            host.placement.shards[1].vms = on_idle;
            host.pass_seconds(60, &[busy, 0.0]);
            for gap in gaps {
                host.pass(Duration::from_millis(gap), &[busy, 0.0]);
                let loads = host.loads();
                if loads[1] + SAME < loads[0] {
                    prop_assert_eq!(host.placement.place(), Some(1), "{:?}", loads);
                } else {
                    host.placement.place();
                }
            }
        }

        #[test]
        fn none_is_chosen_that_is_worse_in_load_and_in_count(
            shards in 1_usize..9,
            steps in proptest::collection::vec((0_u64..3_000, 0_u32..8, 0_usize..9, 0.0..1.0), 0..200),
        ) {
            let mut host = Host::new(shards);
            let mut failed = vec![false; shards];
            for (millis, what, shard, share) in steps {
                let shard = shard % shards;
                let shares: Vec<f64> = (0..shards).map(|n| if n == shard { share } else { 0.0 }).collect();
                host.pass(Duration::from_millis(millis), &shares);
                match what {
                    0 if shard > 0 => {
                        host.placement.fail(shard);
                        failed[shard] = true;
                    }
                    1 | 2 if host.vms()[shard] > 0 => host.placement.leave(shard),
                    _ => {
                        let (loads, vms) = (host.loads(), host.vms());
                        let chosen = host.placement.place().unwrap();
                        prop_assert!(!failed[chosen]);
                        for other in (0..shards).filter(|&other| !failed[other]) {
                            let worse = loads[chosen] > loads[other] && vms[chosen] > vms[other];
                            prop_assert!(!worse, "{chosen} and not {other}: {loads:?} {vms:?}");
                        }
                    }
                }
                for shard in &host.placement.shards {
                    let most = EXPECTED * u32::try_from(shard.vms).unwrap();
                    prop_assert!(shard.measured <= ALL && shard.expected <= most, "{shard:?}");
                }
            }
        }
    }
}
