//! How far what a thread does is from a mutation that nobody derived: a derived gauge is a step from its operands, and a callback that
//! it sets off sets others at that distance. So a circle of gauges and callbacks can be told from a long row, and cut off.

use std::cell::Cell;

thread_local! {
    static STEPS: Cell<usize> = const { Cell::new(0) };
}

/// Of what this thread does now.
pub(crate) fn steps() -> usize {
    STEPS.get()
}

/// Does something at that distance.
pub(crate) fn at_step<T>(steps: usize, f: impl FnOnce() -> T) -> T {
    /// Also where a callback panics.
    struct Back(usize);

    impl Drop for Back {
        fn drop(&mut self) {
            STEPS.set(self.0);
        }
    }

    let _back = Back(STEPS.replace(steps));
    f()
}
