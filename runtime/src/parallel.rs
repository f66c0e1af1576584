//! A small pool of threads that wait for work without sleeping, for a while.
//!
//! A decoded token has about a hundred phases of some tens of microseconds, and waking a thread
//! costs as much as one. So a worker spins for new work first, then yields its core, and only parks
//! when nothing came: a few microseconds between two phases find it awake, a pause for the user does
//! not heat the machine.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::vec::Vec;

/// Most workers of a pool, and so of a session.
pub const MAX_THREADS: usize = 64;
/// Turns of the waiting loop before the core is offered to others: some tens of microseconds.
const SPINS: usize = 2_000;
/// Times the core is offered before the thread parks.
const YIELDS: usize = 100;

/// Threads that a [`Session`](crate::Session) can be lent.
///
/// The thread that calls is one of them: a pool of one starts none.
pub struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: sessions that share a pool take turns.
    turn: Mutex<()>,
}

/// What one call asks of every worker.
#[derive(Clone, Copy)]
struct Job {
    work: *const (),
    call: unsafe fn(*const (), usize),
}

struct Shared {
    /// Counts the jobs; a worker that sees a new number begins.
    epoch: AtomicUsize,
    /// Workers still busy with the current job.
    pending: AtomicUsize,
    /// Written while `pending` is zero, read by workers between a new epoch and their decrement.
    job: UnsafeCell<Option<Job>>,
    parked: AtomicUsize,
    gate: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
    panicked: AtomicBool,
}

// SAFETY: `job` is the only field that is not `Sync`. It is written by the thread that holds `turn`
// while `pending` is zero, before the store to `epoch` that workers read it after; they are done with
// it before the decrement of `pending` that the writer waits for.
unsafe impl Sync for Shared {}
// SAFETY: the pointers in `job` are only used as `run` promises, whichever thread drops them.
unsafe impl Send for Shared {}

impl Threads {
    /// A pool of `n` threads, the caller's included: 1 to [`MAX_THREADS`], others are taken to the
    /// nearest of these.
    ///
    /// # Panics
    ///
    /// If the system cannot start a thread.
    #[must_use]
    pub fn new(n: usize) -> Self {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            parked: AtomicUsize::new(0),
            gate: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        });
        let start = |index| {
            let shared = Arc::clone(&shared);
            let name = std::format!("bitnet-{index}");
            let thread = std::thread::Builder::new().name(name);
            let thread = thread.spawn(move || shared.serve(index));
            thread.expect("the system can start a thread")
        };
        let workers = (1..n.clamp(1, MAX_THREADS)).map(start).collect();
        Self {
            shared,
            workers,
            turn: Mutex::new(()),
        }
    }

    /// Number of threads, the caller's included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` once with each number below [`count`](Self::count), on as many threads, and
    /// returns when all are done. The caller takes number 0.
    ///
    /// # Panics
    ///
    /// If a call panics; all calls have ended by then.
    pub(crate) fn run<F: Fn(usize) + Sync>(&self, work: &F) {
        let _turn = lock(&self.turn);
        let job = Job {
            work: core::ptr::from_ref(work).cast(),
            call: call::<F>,
        };
        let own = self.shared.begin(job, self.workers.len());
        let result = catch_unwind(AssertUnwindSafe(|| work(0)));
        own.wait();
        let panicked = self.shared.panicked.swap(false, Ordering::Relaxed);
        match result {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => assert!(!panicked, "a worker thread panicked"),
        }
    }
}

/// # Safety
///
/// `work` points to an `F` that lives until the call returns.
unsafe fn call<F: Fn(usize) + Sync>(work: *const (), index: usize) {
    // SAFETY: the caller's promise; `F: Sync` allows a shared reference on any thread.
    let work = unsafe { &*work.cast::<F>() };
    work(index);
}

/// Proof that a job was begun; waits for its end.
struct Running<'s>(&'s Shared);

impl Running<'_> {
    fn wait(self) {
        let mut turns = 0;
        while self.0.pending.load(Ordering::Acquire) != 0 {
            relax(&mut turns);
        }
    }
}

/// Spins at first, then lets others run.
fn relax(turns: &mut usize) {
    if *turns < SPINS {
        core::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
    *turns += 1;
}

impl Shared {
    /// Gives a job to all workers. `run` holds the turn and waits for the end, so the last job has
    /// ended, and what this one points to lives until it has.
    fn begin(&self, job: Job, n_workers: usize) -> Running<'_> {
        debug_assert_eq!(self.pending.load(Ordering::Relaxed), 0);
        // SAFETY: no worker reads `job` between its decrement of `pending` and the next epoch.
        unsafe { *self.job.get() = Some(job) };
        self.pending.store(n_workers, Ordering::Relaxed);
        // Sequentially consistent, as in `wait`: either this thread sees a worker that parks, or
        // that worker sees the new epoch.
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.gate));
            self.wake.notify_all();
        }
        Running(self)
    }

    /// The life of a worker.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait(seen);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: the epoch is new, so the job was written before and stays until this worker
            // has decremented `pending`.
            let job = unsafe { *self.job.get() };
            if let Some(Job { work, call }) = job {
                // SAFETY: `run` keeps what `work` points to alive until `pending` is zero.
                let done = catch_unwind(|| unsafe { call(work, index) });
                if done.is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
            }
            self.pending.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an epoch other than `seen`.
    fn wait(&self, seen: usize) -> usize {
        let mut turns = 0;
        while turns < SPINS + YIELDS {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            relax(&mut turns);
        }
        let mut gate = lock(&self.gate);
        self.parked.fetch_add(1, Ordering::SeqCst);
        let epoch = loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                break epoch;
            }
            gate = self.wake.wait(gate).unwrap_or_else(PoisonError::into_inner);
        };
        self.parked.fetch_sub(1, Ordering::SeqCst);
        epoch
    }
}

/// Nothing panics while it holds one of these locks, and they guard no data.
fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        drop(lock(&self.shared.gate));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches panics of its jobs; there is nothing to report here.
            let _ = worker.join();
        }
    }
}

impl core::fmt::Debug for Threads {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Threads").field(&self.count()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_worker_is_called_once_per_job() {
        for n in [1, 2, 3, 8] {
            let threads = Threads::new(n);
            let calls: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..=200 {
                threads.run(&|i| {
                    calls[i].fetch_add(1, Ordering::Relaxed);
                });
                let done = calls.iter().map(|c| c.load(Ordering::Relaxed));
                assert!(done.eq((0..n).map(|_| round)), "{n} threads, round {round}");
            }
        }
    }

    #[test]
    fn parked_workers_wake_up() {
        let threads = Threads::new(3);
        let calls = AtomicUsize::new(0);
        for _ in 0..3 {
            while threads.shared.parked.load(Ordering::SeqCst) < 2 {
                std::thread::sleep(Duration::from_millis(1));
            }
            threads.run(&|_| {
                calls.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(calls.into_inner(), 9);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let threads = Threads::new(2);
        for panicking in [0, 1] {
            let run = || threads.run(&|i| assert_ne!(i, panicking, "on purpose"));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        }
        let calls = AtomicUsize::new(0);
        threads.run(&|_| {
            calls.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(calls.into_inner(), 2);
    }

    #[test]
    fn callers_take_turns() {
        let threads = Threads::new(2);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        threads.run(&|i| {
                            total.fetch_add(i + 1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * 50 * 3);
    }
}
