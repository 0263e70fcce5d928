//! A child process that can't outlive its test.

use std::{
    io,
    process::{Child, Command},
};

/// Kills the child by its id and reaps it when dropped, on a panic too.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts the command.
    pub fn start(command: &mut Command) -> io::Result<Running> {
        command.spawn().map(Running)
    }

    /// The child, to take its pipes or look whether it ended.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that has ended and been reaped already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
