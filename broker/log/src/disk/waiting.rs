//! Reads that may not wait for the disk: a thread that serves many says so for the time of a call.

use std::cell::Cell;

thread_local! {
    static MAY_WAIT: Cell<bool> = const { Cell::new(true) };
}

/// Runs something whose reads, where they would wait for the disk, fail with `WouldBlock` instead. What it does beside reading
/// waits as ever.
pub fn without_waiting<T>(act: impl FnOnce() -> T) -> T {
    /// Also after a panic the thread's next reads wait as ever.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            MAY_WAIT.set(self.0);
        }
    }
    let _restore = Restore(MAY_WAIT.replace(false));
    act()
}

/// Whether a read on this thread may wait for the disk: asked by files.
pub fn may_wait() -> bool {
    MAY_WAIT.get()
}
