//! A TCP proxy in front of a server: a network that delays, swallows and cuts.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// What the network does with bytes and connections. All connections share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    /// Each way, each read of up to 64 kB waits so long.
    Pass { delay: Duration },
    /// Half open: connections stand and new ones are accepted, but nothing that is written arrives.
    Swallow,
    /// Connections stand, and nobody reads: what is written fills the buffers of both ends.
    Stall,
    /// Whoever connects is sent away.
    Refuse,
}

#[derive(Debug, Clone, Copy)]
struct State {
    weather: Weather,
    /// What was accepted under another one ends.
    generation: u64,
    closed: bool,
}

/// A proxy on a free port, in a thread of its own; gone with all its connections when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    connections: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Stands before a server, and passes everything on.
    pub fn before(server: SocketAddr) -> Proxy {
        let (state, seen) = watch::channel(State {
            weather: Weather::Pass {
                delay: Duration::ZERO,
            },
            generation: 0,
            closed: false,
        });
        let connections = Arc::new(AtomicU64::new(0));
        let accepted = Arc::clone(&connections);
        let (found, address) = mpsc::channel();
        let thread = thread::spawn(move || {
            let run = || -> io::Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(async {
                    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                    let _ = found.send(listener.local_addr()?);
                    accept(listener, server, seen, accepted).await;
                    Ok(())
                })
            };
            if let Err(why) = run() {
                eprintln!("the proxy ended: {why}");
            }
        });
        let address = address
            .recv()
            .unwrap_or_else(|_| panic!("the proxy did not start"));
        Proxy {
            address,
            state,
            connections,
            thread: Some(thread),
        }
    }

    /// Where it listens, as a URL.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// How many connections it has accepted so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Passes everything on again. Connections that lost bytes are cut, as their rest would be garbage.
    pub fn pass(&self) {
        self.turn(Weather::Pass {
            delay: Duration::ZERO,
        });
    }

    /// Passes everything on, later.
    pub fn delay(&self, delay: Duration) {
        self.turn(Weather::Pass { delay });
    }

    /// Accepts connections and bytes, and nothing arrives anywhere.
    pub fn swallow(&self) {
        self.turn(Weather::Swallow);
    }

    /// Accepts connections and reads nothing.
    pub fn stall(&self) {
        self.turn(Weather::Stall);
    }

    /// Ends all connections, and each new one at once.
    pub fn refuse(&self) {
        self.turn(Weather::Refuse);
    }

    /// Ends all present connections.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    fn turn(&self, weather: Weather) {
        self.state.send_modify(|state| state.weather = weather);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.send_modify(|state| state.closed = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    state: watch::Receiver<State>,
    accepted: Arc<AtomicU64>,
) {
    let mut end = state.clone();
    loop {
        tokio::select! {
            client = listener.accept() => {
                accepted.fetch_add(1, Ordering::Relaxed);
                if let Ok((client, _)) = client {
                    tokio::spawn(connection(client, server, state.clone()));
                }
            }
            _ = end.wait_for(|state| state.closed) => return,
        }
    }
}

async fn connection(client: TcpStream, server: SocketAddr, mut state: watch::Receiver<State>) {
    let generation = state.borrow().generation;
    let mut end = state.clone();
    tokio::select! {
        _ = end.wait_for(|state| {
            state.closed || state.generation != generation || state.weather == Weather::Refuse
        }) => {}
        () = pass_on(client, server, &mut state) => {}
    }
}

async fn pass_on(client: TcpStream, server: SocketAddr, state: &mut watch::Receiver<State>) {
    let _ = client.set_nodelay(true);
    // While nothing passes, the server does not hear of it either.
    let passes = |state: &State| matches!(state.weather, Weather::Pass { .. });
    if state.wait_for(passes).await.is_err() {
        return;
    }
    let Ok(upstream) = TcpStream::connect(server).await else {
        return;
    };
    let _ = upstream.set_nodelay(true);
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = upstream.into_split();
    // The end of one way is the end of both.
    tokio::select! {
        () = pump(client_reads, server_writes, state.clone()) => {}
        () = pump(server_reads, client_writes, state.clone()) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut buffer = vec![0; 65_536];
    let mut lost = false;
    loop {
        let weather = state.borrow_and_update().weather;
        if lost && matches!(weather, Weather::Pass { .. }) {
            return;
        }
        let read = tokio::select! {
            read = from.read(&mut buffer), if weather != Weather::Stall => read,
            changed = state.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let Ok(bytes @ 1..) = read else { return };
        let weather = state.borrow().weather;
        match weather {
            Weather::Pass { delay } if delay.is_zero() => {}
            Weather::Pass { delay } => tokio::time::sleep(delay).await,
            Weather::Swallow | Weather::Refuse => {
                lost = true;
                continue;
            }
            // These bytes were read before: they go on.
            Weather::Stall => {}
        }
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}
