//! The reader's side of a mailbox: takes letters by the batch, and decides when to park.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use crate::mailbox::{Letters, Mailbox, Taken};

/// The reader's end of a mailbox, for one kind of event.
pub(crate) struct Inbox<T> {
    mailbox: Arc<Mailbox<T>>,
    batch: Letters<T>,
    /// Looks left before parking.
    looks: u32,
    /// Whether it looks at all.
    patient: bool,
    position: u64,
    steps: usize,
}

/// How often a reader looks again before it parks when letters come thick and fast (several at once, or while it was
/// looking), and how long it waits in between: some 20 µs in all. To wake a parked thread costs the mutating one 7–11 µs,
/// and would cost it that for every few dozen mutations.
const LOOKS: u32 = 8;
const SPINS: u32 = 128;

pub(crate) enum Item<T> {
    Letter(T),
    /// So many letters were dropped before the next one.
    Lagged(u64),
    End,
}

impl<T> Inbox<T> {
    pub(crate) fn new(mailbox: Arc<Mailbox<T>>) -> Self {
        Inbox {
            batch: Letters::with_capacity(mailbox.capacity()),
            mailbox,
            looks: 0,
            patient: false,
            position: 0,
            steps: 0,
        }
    }

    /// For a reader of a thread of its own, of letters that may come as fast as mutations do.
    pub(crate) fn patient(mailbox: Arc<Mailbox<T>>) -> Self {
        Inbox {
            patient: true,
            ..Inbox::new(mailbox)
        }
    }

    /// How far the letters at hand are from a mutation that nobody derived, at most.
    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// How many letters left the mailbox before those at hand.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    #[cfg(feature = "backtest")]
    pub(crate) fn mailbox(&self) -> &Arc<Mailbox<T>> {
        &self.mailbox
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Item<T>> {
        loop {
            if let Some(letter) = self.batch.pop_front() {
                return Poll::Ready(Item::Letter(letter));
            }
            let taken = if self.looks > 0 {
                self.mailbox.try_take(&mut self.batch)
            } else {
                self.mailbox.poll_take(cx, &mut self.batch)
            };
            match taken {
                Poll::Pending if self.looks > 0 => {
                    self.looks -= 1;
                    for _ in 0..SPINS {
                        std::hint::spin_loop();
                    }
                    // Others that share this thread have their turn in between.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Taken::Closed) => return Poll::Ready(Item::End),
                Poll::Ready(Taken::Letters { lagged, position }) => {
                    self.position = position;
                    self.steps = self.mailbox.take_steps();
                    // The thread that woke a reader is busy with that for a while: a letter that came alone may be the
                    // first of many, and is worth one look.
                    let busy = self.looks > 0 || self.batch.len() > 1;
                    self.looks = match (self.patient, busy) {
                        (false, _) => 0,
                        (true, true) => LOOKS,
                        (true, false) => 1,
                    };
                    if lagged > 0 {
                        return Poll::Ready(Item::Lagged(lagged));
                    }
                }
            }
        }
    }
}
