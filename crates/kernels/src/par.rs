use std::sync::{Mutex, PoisonError};

/// How many threads a call may use.
///
/// Threads are those of the rayon pool that is current where the call is made: an engine gives its own by calling within
/// `pool.install`. No result depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Par {
    /// The calling thread alone.
    #[default]
    Seq,
    /// At most this many threads at a time; 0 and 1 mean [`Par::Seq`].
    Threads(usize),
    /// All threads of the pool.
    Rayon,
}

impl Par {
    /// How many threads work at a time, at most.
    #[must_use]
    pub fn threads(self) -> usize {
        match self {
            Self::Seq => 1,
            Self::Threads(n) => n.max(1),
            Self::Rayon => rayon::current_num_threads(),
        }
    }

    /// Calls `work` with every item, in any order where there are several threads.
    pub fn for_each<I>(self, items: I, work: impl Fn(I::Item) + Sync)
    where
        I: ExactSizeIterator + Send,
    {
        self.for_each_init(items, || (), |(), item| work(item));
    }

    /// Calls `work` with every item and with what `init` makes once for each thread.
    pub fn for_each_init<I, S>(
        self,
        items: I,
        init: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, I::Item) + Sync,
    ) where
        I: ExactSizeIterator + Send,
    {
        let threads = self.threads().min(items.len());
        if threads <= 1 {
            let mut own = init();
            return items.for_each(|item| work(&mut own, item));
        }
        // Whoever is free takes the next one: rayon's own loops would use the whole pool.
        let items = Mutex::new(items);
        let take = || {
            let mut own = init();
            loop {
                let item = items.lock().unwrap_or_else(PoisonError::into_inner).next();
                match item {
                    Some(item) => work(&mut own, item),
                    None => break,
                }
            }
        };
        rayon::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|_| take());
            }
            take();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::Par;

    /// In a pool of six, never more at a time than allowed; and as many as that where the work is long enough.
    #[test]
    fn threads_are_kept_to() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(6).build().unwrap();
        for (par, most) in [
            (Par::Seq, 1),
            (Par::Threads(0), 1),
            (Par::Threads(1), 1),
            (Par::Threads(2), 2),
            (Par::Threads(5), 5),
            (Par::Rayon, 6),
        ] {
            let (busy, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let seen = Mutex::new(HashSet::new());
            let done = Mutex::new(Vec::new());
            pool.install(|| {
                par.for_each(0..60, |i| {
                    peak.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    seen.lock().unwrap().insert(std::thread::current().id());
                    std::thread::sleep(Duration::from_millis(2));
                    done.lock().unwrap().push(i);
                    busy.fetch_sub(1, Ordering::SeqCst);
                });
            });
            let mut done = done.into_inner().unwrap();
            done.sort_unstable();
            assert_eq!(done, (0..60).collect::<Vec<_>>(), "{par:?}");
            let (peak, seen) = (peak.into_inner(), seen.into_inner().unwrap().len());
            assert!(peak <= most && seen <= most, "{par:?}: {peak} at a time, {seen} in all");
            assert!(most == 1 || peak > 1, "{par:?} ran on one thread");
        }
    }

    #[test]
    fn each_thread_makes_its_own() {
        let made = AtomicUsize::new(0);
        Par::Threads(3).for_each_init(0..50, || made.fetch_add(1, Ordering::SeqCst), |_, _| {});
        assert!((1..=3).contains(&made.into_inner()));
        Par::Rayon.for_each(std::iter::empty::<u8>(), |_| panic!("nothing to do"));
    }
}
