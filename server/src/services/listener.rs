//! TCP for HTTP: a limit on connections, an end to those on which nothing moves, and to requests that never end.
//!
//! Without them a client that opens connections and says next to nothing would take every place there is, and every file
//! descriptor. When all places are taken, the card with the most connections makes room for others, and else the connection
//! that has been idle for longest.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use swarm::owners::{Neighbours, Owner};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, Sleep, sleep};

/// Pause after a failed accept, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What connections may do.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at a time.
    places: usize,
    /// And from one address, loopback excepted: a room behind one router has to do with these.
    places_of_one: usize,
    /// Silence after which a connection is closed.
    idle: Duration,
    /// Silence after which it makes room for another one.
    idle_when_full: Duration,
    /// From the first byte of a request to the first one of the answer.
    request: Duration,
}

/// A room fetches the kernel and reports with a connection or two for each machine, and a machine that reports once a second
/// is never idle for long. A request is two packets, or for a report at most 64 KiB.
const LIMITS: Limits = Limits {
    places: 6000,
    places_of_one: 1500,
    idle: Duration::from_secs(60),
    // A slow link may need seconds before the kernel takes more of a large file.
    idle_when_full: Duration::from_secs(15),
    request: Duration::from_secs(20),
};

/// A listening socket with limits.
pub struct LimitedListener {
    listener: TcpListener,
    limits: Limits,
    places: Arc<Places>,
}

impl LimitedListener {
    /// Puts the limits around a socket.
    pub fn new(listener: TcpListener) -> LimitedListener {
        LimitedListener { listener, limits: LIMITS, places: Arc::default() }
    }

    /// A place for one more from this address, once there is one; `None` if the address has more than enough.
    async fn place(&self, from: IpAddr) -> Option<Place> {
        loop {
            let freed = self.places.freed.notified();
            match self.places.take(from, &self.limits) {
                Ok(place) => return Some(place),
                Err(Full::OfOne) => return None,
                Err(Full::All) => {
                    let _ = tokio::time::timeout(ACCEPT_PAUSE, freed).await;
                }
            }
        }
    }
}

impl Listener for LimitedListener {
    type Io = LimitedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (LimitedStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    let Some(place) = self.place(from.ip().to_canonical()).await else {
                        log::debug!("HTTP: {from} has too many connections already");
                        continue;
                    };
                    let _ = stream.set_nodelay(true);
                    return (LimitedStream::new(stream, place, self.limits), from);
                }
                Err(error) => {
                    log::debug!("HTTP: accepting a connection failed: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[derive(Default)]
struct Places {
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Default)]
struct Taken {
    next: u64,
    connections: HashMap<u64, Connection>,
    neighbours: Neighbours,
}

struct Connection {
    from: IpAddr,
    owner: Owner,
    moved: Instant,
    /// Ends it when dropped.
    _end: oneshot::Sender<()>,
}

/// What became of the wish for a place in a full house.
enum Room {
    /// There is one.
    Made,
    /// The card that asks has most of the places itself.
    OwnCrowd,
    /// No card has many more than others.
    Fair,
}

/// Why there is no place.
enum Full {
    /// Nor for anybody else.
    All,
    /// One address has as many as it may.
    OfOne,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Places>, from: IpAddr, limits: &Limits) -> Result<Place, Full> {
        let mut taken = self.lock();
        let of_one = taken.connections.values().filter(|connection| connection.from == from).count();
        if of_one >= limits.places_of_one && !from.is_loopback() {
            taken.end_idle(limits, Some(from)).ok_or(Full::OfOne)?;
        }
        let owner = taken.neighbours.owner(from);
        if taken.connections.len() >= limits.places {
            match taken.end_of_largest(owner) {
                Room::Made => {}
                // It waits for nobody: the others would wait behind it.
                Room::OwnCrowd if from.is_loopback() => taken.end_idle(limits, None).ok_or(Full::All)?,
                Room::OwnCrowd => taken.end_idle(limits, None).ok_or(Full::OfOne)?,
                Room::Fair => taken.end_idle(limits, None).ok_or(Full::All)?,
            }
        }
        let number = taken.next;
        taken.next += 1;
        let (end, ended) = oneshot::channel();
        taken.connections.insert(number, Connection { from, owner, moved: Instant::now(), _end: end });
        Ok(Place { places: self.clone(), number, ended })
    }
}

impl Taken {
    /// Ends the idlest connection of the card with the most, unless another one of `owner` would make it one of those.
    fn end_of_largest(&mut self, owner: Owner) -> Room {
        let mut counts: HashMap<Owner, usize> = HashMap::new();
        for connection in self.connections.values() {
            *counts.entry(connection.owner).or_default() += 1;
        }
        let own = counts.get(&owner).copied().unwrap_or(0);
        let total = self.connections.len();
        let Some((largest, count)) = counts.into_iter().max_by_key(|(_, count)| *count) else { return Room::Fair };
        if count <= own + 1 {
            return if own > total / 2 { Room::OwnCrowd } else { Room::Fair };
        }
        let of_largest = self.connections.iter().filter(|(_, connection)| connection.owner == largest);
        let number = of_largest.min_by_key(|(_, connection)| connection.moved).map(|(number, _)| *number);
        if let Some(number) = number {
            self.connections.remove(&number);
        }
        Room::Made
    }

    /// Ends the connection that has been idle for longest, of one address or of all.
    fn end_idle(&mut self, limits: &Limits, from: Option<IpAddr>) -> Option<()> {
        let connections = self.connections.iter().filter(|(_, other)| from.is_none_or(|from| other.from == from));
        let (number, idlest) = connections.min_by_key(|(_, other)| other.moved)?;
        if idlest.moved.elapsed() < limits.idle_when_full {
            return None;
        }
        let number = *number;
        self.connections.remove(&number).map(drop)
    }
}

/// A place that is taken until this is dropped, or until it has to make room.
struct Place {
    places: Arc<Places>,
    number: u64,
    ended: oneshot::Receiver<()>,
}

impl Place {
    fn moved(&self) {
        if let Some(connection) = self.places.lock().connections.get_mut(&self.number) {
            connection.moved = Instant::now();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().connections.remove(&self.number);
        self.places.freed.notify_one();
    }
}

/// A connection that ends when nothing moves, when a request does not end, or when it has to make room.
pub struct LimitedStream {
    stream: TcpStream,
    limits: Limits,
    idle: Pin<Box<Sleep>>,
    /// When the request that has begun has to be answered.
    request: Option<Pin<Box<Sleep>>>,
    is_over: bool,
    place: Place,
}

impl LimitedStream {
    fn new(stream: TcpStream, place: Place, limits: Limits) -> LimitedStream {
        LimitedStream { stream, limits, idle: Box::pin(sleep(limits.idle)), request: None, is_over: false, place }
    }

    fn moved(&mut self) {
        self.idle.as_mut().reset(Instant::now() + self.limits.idle);
        self.place.moved();
    }

    /// Whether the connection has to end.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        // Each is asked, to be woken by it; and none again after it was ready.
        if !self.is_over {
            let is_late = self.request.as_mut().is_some_and(|request| request.as_mut().poll(cx).is_ready());
            let is_idle = self.idle.as_mut().poll(cx).is_ready();
            self.is_over = is_late | is_idle | Pin::new(&mut self.place.ended).poll(cx).is_ready();
        }
        self.is_over
    }

    fn wrote(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if poll.is_ready() {
            self.request = None;
            self.moved();
        } else if self.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        poll
    }
}

impl AsyncRead for LimitedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // First, because a client that always has another byte would never let us ask.
        if self.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let poll = Pin::new(&mut self.stream).poll_read(cx, buf);
        if poll.is_ready() {
            let request = self.limits.request;
            self.request.get_or_insert_with(|| Box::pin(sleep(request)));
            self.moved();
        }
        poll
    }
}

impl AsyncWrite for LimitedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(cx, poll)
    }

    /// Or hyper would copy a torrent to send it.
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Both ends of a connection, for the handlers.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub from: SocketAddr,
    /// Our address as the client reached it.
    pub local: SocketAddr,
}

impl Connected<IncomingStream<'_, LimitedListener>> for Ends {
    fn connect_info(stream: IncomingStream<'_, LimitedListener>) -> Ends {
        let from = *stream.remote_addr();
        // A connection that is gone already has no local address; nobody will read the answer either.
        Ends { from, local: stream.io().stream.local_addr().unwrap_or(from) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test);
    }

    #[test]
    fn a_request_that_never_ends_ends_the_connection() {
        run(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
            let limits = Limits { request: Duration::from_millis(500), ..LIMITS };
            let mut listener = LimitedListener { limits, ..LimitedListener::new(listener) };
            let (mut stream, _) = listener.accept().await;
            tokio::spawn(async move {
                while client.write_all(b"x").await.is_ok() {
                    sleep(Duration::from_millis(20)).await;
                }
            });
            let read = async {
                // An answer gives the next request its own time.
                for _ in 0..20 {
                    stream.read_u8().await.expect("a byte");
                    stream.write_all(b"y").await.expect("sent");
                    sleep(Duration::from_millis(50)).await;
                }
                loop {
                    if let Err(error) = stream.read_u8().await {
                        return error.kind();
                    }
                }
            };
            let ended = tokio::time::timeout(Duration::from_secs(20), read).await;
            assert_eq!(ended.expect("it ends"), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn who_is_idle_makes_room() {
        run(async {
            let places = Arc::new(Places::default());
            let limits = Limits { places: 3, places_of_one: 3, idle_when_full: Duration::from_millis(50), ..LIMITS };
            let mut all: Vec<Place> =
                [A, A, B].into_iter().map(|from| places.take(from, &limits).ok().expect("room")).collect();
            assert!(matches!(places.take(B, &limits), Err(Full::All)), "nobody is idle yet");
            sleep(limits.idle_when_full).await;
            all[0].moved();
            let newcomer = places.take(B, &limits).ok().expect("room");
            assert!(all[1].ended.try_recv() == Err(oneshot::error::TryRecvError::Closed), "the idlest has to go");
            assert!([0, 2].iter().all(|i| all[*i].ended.try_recv() == Err(oneshot::error::TryRecvError::Empty)));
            drop(newcomer);
            assert!(places.take(B, &limits).is_ok(), "who leaves makes room too");
        });
    }

    #[test]
    fn one_address_cannot_take_every_place() {
        let places = Arc::new(Places::default());
        let taken: Vec<Place> = (0..LIMITS.places).map_while(|_| places.take(A, &LIMITS).ok()).collect();
        assert_eq!(taken.len(), LIMITS.places / 4);
        assert!(matches!(places.take(A, &LIMITS), Err(Full::OfOne)));
        assert!(places.take(B, &LIMITS).is_ok());
        drop(taken);
        // A card with many addresses makes room for others, however busy its connections are.
        let places = Arc::new(Places::default());
        let limits = Limits { places: 100, places_of_one: 40, ..LIMITS };
        let many: Vec<Place> = (0..100u8)
            .map_while(|number| {
                let address = IpAddr::from([10, 9, 9, number % 4]);
                let place = places.take(address, &limits).ok()?;
                let mut taken = places.lock();
                let card = Owner::Card([2, 0, 0, 0, 0, 1]);
                taken.connections.get_mut(&place.number).expect("taken").owner = card;
                drop(taken);
                Some(place)
            })
            .collect();
        assert_eq!(many.len(), 100);
        let others: Vec<Place> =
            (0..49u8).map_while(|number| places.take(IpAddr::from([10, 8, 0, number]), &limits).ok()).collect();
        assert_eq!(others.len(), 49);
        assert_eq!(places.lock().connections.len(), 100);

        let places = Arc::new(Places::default());
        let local = std::net::Ipv4Addr::LOCALHOST.into();
        let taken: Vec<Place> = (0..LIMITS.places).map_while(|_| places.take(local, &LIMITS).ok()).collect();
        assert_eq!(taken.len(), LIMITS.places);
    }
}
