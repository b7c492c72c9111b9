//! One link: handshake, then a reading and a writing half in one task.
//!
//! The reading half stores blocks and notes what the peer wants; the writing half says what there is to say and serves.
//! They meet in [`Link`] and in the engine; neither waits for the other.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use metainfo::{BLOCK_LEN, PieceIndex};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::bits::PieceSet;
use crate::buffers::{PieceBuf, SEGMENT_LEN, lock};
use crate::engine::{Shared, Wish, count};
use crate::handshake_slots::HandshakeSlot;
use crate::link::Link;
use crate::pace::{SLOT_STALL, UNACKNOWLEDGED};
use crate::picker::Ask;
use crate::wire::{self, HANDSHAKE_LEN, Handshake, Message, Request, WireError};

/// Longest wait for a connection: on a LAN one lost SYN is sent again after a second, two after three.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for the other side's handshake: a machine that is busy with its own start needs a second or two.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that says nothing for this long is gone (BEP 3: keep-alives come every two minutes).
const SILENCE: Duration = Duration::from_secs(150);
/// Where nothing else is said, half of the two minutes after which a peer may close (BEP 3).
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Between probes of a connection on which nothing moves, so that a dead machine is noticed although nothing is sent.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Bytes the kernel holds that it has not sent: more would only delay what we ask for behind what we serve.
const UNSENT_BYTES: u32 = 256 << 10;
/// The same for a link whose owner has others: with much in the kernel for each of them, they would have most of the wire
/// without having their turn.
const UNSENT_BYTES_SHARED: u32 = 16 << 10;
/// Bytes read at a time.
const READ_LEN: usize = 256 << 10;
/// Blocks sent before looking up again: one system call writes them all.
const BATCH: usize = 16;
/// Their bytes at most, unless the first one alone is more.
const BATCH_BYTES: u32 = 256 << 10;

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("connection")]
    Io(#[from] io::Error),
    #[error("protocol")]
    Wire(#[from] WireError),
    #[error("asked for piece {0}, which we do not have")]
    NotOurs(PieceIndex),
    #[error("silent")]
    Silent,
    #[error("nothing to exchange")]
    Useless,
}

/// Dials a peer and stays with it until the link ends.
pub(crate) async fn dial(shared: Arc<Shared>, addr: SocketAddr) {
    let mut ending = shared.ending();
    let connected = tokio::select! {
        _ = ending.wait_for(|ended| *ended) => return,
        connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(addr)) => connected,
    };
    let Ok(Ok(mut stream)) = connected else { return shared.dial_failed(addr) };
    let handshake = async {
        stream.write_all(&ours(&shared)).await?;
        read_handshake(&mut stream).await
    };
    let theirs = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(theirs)) if theirs.infohash == shared.meta.infohash => theirs,
        Ok(Err(error)) if is_hang_up(&error) => {
            shared.dial_failed(addr);
            return shared.turned_away(addr, false);
        }
        _ => return shared.dial_failed(addr),
    };
    run(shared, stream, addr, theirs, true).await;
}

/// Whether the other side closed the connection. If it did not read what we sent, that is a reset.
fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Answers somebody who dialled us, if it is our torrent it wants, and stays until the link ends.
pub(crate) async fn answer(shared: Arc<Shared>, mut stream: TcpStream, addr: SocketAddr, slot: HandshakeSlot) {
    if shared.has_failed() {
        return;
    }
    let handshake = async {
        let theirs = read_handshake(&mut stream).await?;
        if theirs.infohash != shared.meta.infohash {
            return Err(io::Error::other("another torrent"));
        }
        stream.write_all(&ours(&shared)).await?;
        Ok(theirs)
    };
    let Ok(Ok(theirs)) = timeout(HANDSHAKE_TIMEOUT, handshake).await else { return };
    drop(slot);
    run(shared, stream, addr, theirs, false).await;
}

fn ours(shared: &Shared) -> [u8; HANDSHAKE_LEN] {
    Handshake { reserved: [0; 8], infohash: shared.meta.infohash, peer_id: shared.peer_id }.encode()
}

async fn read_handshake(stream: &mut TcpStream) -> io::Result<Handshake> {
    let mut bytes = [0; HANDSHAKE_LEN];
    stream.read_exact(&mut bytes).await?;
    Handshake::decode(&bytes).map_err(io::Error::other)
}

async fn run(shared: Arc<Shared>, stream: TcpStream, addr: SocketAddr, theirs: Handshake, is_dialled: bool) {
    let (link, bitfield) = match shared.admit(theirs.peer_id, addr, is_dialled) {
        Ok(admitted) => admitted,
        Err(refused) => {
            log::debug!("peer {addr}: not taken, {refused:?}");
            return;
        }
    };
    tune(&stream);
    let (reader, writer) = stream.into_split();
    let mut ending = shared.ending();
    let mut is_closed_here = false;
    let result = tokio::select! {
        _ = ending.wait_for(|ended| *ended) => {
            is_closed_here = true;
            Ok(())
        }
        () = link.close.notified() => {
            is_closed_here = true;
            Ok(())
        }
        () = link.finish.notified() => Err(LinkError::Useless),
        result = read(&shared, &link, reader) => result,
        result = write(&shared, &link, writer, bitfield) => result,
    };
    if let Err(error) = &result {
        if matches!(error, LinkError::Wire(_) | LinkError::NotOurs(_)) {
            count(&shared.counters.bad_packets, 1);
            log::warn!(
                "peer {addr}: dropped: {error}: {}",
                std::error::Error::source(error).map_or(String::new(), |s| s.to_string())
            );
        } else {
            log::debug!("peer {addr}: gone: {error}");
        }
    }
    let is_hang_up = match &result {
        Ok(()) => !is_closed_here,
        Err(LinkError::Io(error)) => is_hang_up(error),
        Err(_) => false,
    };
    if is_dialled && is_hang_up && !link.has_spoken.load(Ordering::Relaxed) {
        shared.turned_away(addr, true);
    }
    shared.remove(&link, matches!(result, Err(LinkError::Useless)));
}

/// Best effort: a link works without any of these.
fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let _ = stream.set_nodelay(true);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(UNACKNOWLEDGED).with_interval(PROBE_INTERVAL));
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES);
}

async fn read(shared: &Arc<Shared>, link: &Link, mut reader: OwnedReadHalf) -> Result<(), LinkError> {
    let mut buf = BytesMut::with_capacity(READ_LEN);
    let mut said = PieceSet::new(shared.geometry);
    loop {
        buf.reserve(READ_LEN);
        let len = timeout(SILENCE, reader.read_buf(&mut buf)).await.map_err(|_| LinkError::Silent)??;
        if len == 0 {
            return Ok(());
        }
        if !link.has_spoken.swap(true, Ordering::Relaxed) {
            shared.is_welcome();
        }
        shared.down.pass(len).await;
        let used = take_messages(shared, link, &buf, &mut said)?;
        buf.advance(used);
        link.wake.notify_one();
    }
}

/// What a run of messages came to, other than what was acted on at once.
#[derive(Default)]
struct Sorted {
    /// Blocks that are in their buffers.
    arrived: Vec<(Ask, Arc<PieceBuf>)>,
    /// Pieces that the peer says it has, and did not say before.
    haves: Vec<PieceIndex>,
    /// Pieces that the peer does not give us, although it said that it has them.
    lacks: Vec<PieceIndex>,
    /// What it wants to be sent, or no longer.
    wishes: Vec<Wish>,
}

/// Acts on every whole message in `bytes`; how many bytes those were. `said` is what the peer has said that it has: the
/// engine, which is everybody's, hears of each piece once, and of many things at a time.
fn take_messages(shared: &Arc<Shared>, link: &Link, bytes: &[u8], said: &mut PieceSet) -> Result<usize, LinkError> {
    let mut sorted = Sorted::default();
    let used = sort_messages(shared, link, bytes, said, &mut sorted);
    // Also if nonsense follows them: they are in their buffers, which take no block twice.
    if !sorted.arrived.is_empty() {
        shared.blocks_arrived(link, &sorted.arrived);
    }
    if !sorted.wishes.is_empty() {
        shared.peer_wants(link, &sorted.wishes).map_err(LinkError::NotOurs)?;
    }
    if !sorted.lacks.is_empty() {
        shared.peer_lacks(link, &sorted.lacks);
    }
    if !sorted.haves.is_empty() && !shared.peer_has(link, sorted.haves) {
        return Err(LinkError::Useless);
    }
    used
}

/// Acts on every whole message in `bytes`, but leaves it to the caller to tell the engine what came of them. How many
/// bytes the messages were.
fn sort_messages(
    shared: &Arc<Shared>,
    link: &Link,
    bytes: &[u8],
    said: &mut PieceSet,
    sorted: &mut Sorted,
) -> Result<usize, LinkError> {
    let mut used = 0;
    while let Some((message, len)) = wire::decode(&bytes[used..], &shared.geometry)? {
        used += len;
        match message {
            Message::Piece { piece, begin, data } => {
                count(&shared.counters.downloaded, data.len());
                let ask = Ask { piece, block: begin / BLOCK_LEN };
                let is_block = begin % BLOCK_LEN == 0
                    && u32::try_from(data.len()) == Ok(shared.geometry.block_len(piece, ask.block));
                let buf = if is_block { lock(&link.asked).remove(&ask) } else { None };
                match buf.filter(|buf| buf.put(ask.block, data, u64::from(link.key))) {
                    Some(buf) => sorted.arrived.push((ask, buf)),
                    None => count(&shared.counters.wasted, data.len()),
                }
            }
            Message::Request(request) => sorted.wishes.push(Wish::Request(request)),
            Message::Cancel(request) => sorted.wishes.push(Wish::Cancel(request)),
            Message::Have(piece) => sorted.haves.extend(said.insert(piece).then_some(piece)),
            // BEP 3 has it first and once. aria2 sends it again, when that is shorter than all its news one by one.
            Message::Bitfield(set) => sorted.haves.extend(said.unite(&set)),
            Message::Reject(request) => sorted.lacks.extend(said.remove(request.piece).then_some(request.piece)),
            Message::Unchoke => shared.peer_lets_us_ask(link, true),
            Message::Choke => shared.peer_lets_us_ask(link, false),
            Message::Interested | Message::NotInterested | Message::KeepAlive | Message::Ignored(_) => {}
        }
    }
    Ok(used)
}

async fn write(
    shared: &Arc<Shared>,
    link: &Link,
    mut writer: OwnedWriteHalf,
    bitfield: Option<Vec<u8>>,
) -> Result<(), LinkError> {
    let mut out = bitfield.unwrap_or_default();
    wire::encode(&Message::Unchoke, &mut out);
    loop {
        shared.compose(link, &mut out);
        if !out.is_empty() {
            let rest = send(&mut writer, &[&out]).await?;
            out.clear();
            send_rest(shared, link, &mut writer, &rest).await?;
        }
        if let Some(first) = shared.next_upload(link) {
            serve(shared, link, &mut writer, first).await?;
            // Between batches others get the thread.
            tokio::task::consume_budget().await;
            continue;
        }
        tokio::select! {
            () = link.wake.notified() => {}
            () = tokio::time::sleep(KEEP_ALIVE) => wire::encode(&Message::KeepAlive, &mut out),
        }
    }
}

/// Sends the next ranges that the peer asked for, as many as lie in one run of memory with the first one.
async fn serve(
    shared: &Arc<Shared>,
    link: &Link,
    writer: &mut OwnedWriteHalf,
    first: Request,
) -> Result<(), LinkError> {
    let Some((data, base)) = load(shared, first).await? else { return Ok(()) };
    let end = u64::from(base) + u64::try_from(data.len()).expect("fits");
    let (mut taken, mut bytes) = (0, 0);
    let batch = shared.take_uploads(link, |next| {
        let is_here = next.piece == first.piece && next.begin >= base && u64::from(next.begin + next.len) <= end;
        let is_enough = taken == BATCH || taken > 0 && bytes + next.len > BATCH_BYTES;
        let fits = is_here && !is_enough;
        if fits {
            taken += 1;
            bytes += next.len;
        }
        fits
    });
    if batch.is_empty() {
        // Cancelled while it was read.
        return Ok(());
    }
    let headers: Vec<[u8; 13]> =
        batch.iter().map(|request| wire::piece_header(request.piece, request.begin, request.len)).collect();
    // Best effort, as in `tune`.
    let unsent = if shared.has_siblings(link) { UNSENT_BYTES_SHARED } else { UNSENT_BYTES };
    if link.unsent.swap(unsent, Ordering::Relaxed) != unsent {
        let _ = SockRef::from(writer.as_ref()).set_tcp_notsent_lowat(unsent);
    }
    let mut parts: Vec<&[u8]> = Vec::with_capacity(batch.len() * 2);
    for (request, header) in batch.iter().zip(&headers) {
        let start = usize::try_from(request.begin - base).expect("fits usize");
        parts.push(header);
        parts.push(&data[start..start + usize::try_from(request.len).expect("fits usize")]);
    }
    shared.up.pass(usize::try_from(bytes).expect("fits usize")).await;
    let rest = send(writer, &parts).await?;
    // The whole piece may be held by this alone, and there are more links than there is memory for pieces.
    drop(data);
    send_rest(shared, link, writer, &rest).await?;
    shared.counters.uploaded.fetch_add(u64::from(bytes), Ordering::Relaxed);
    shared.sent(link, first.piece, bytes);
    Ok(())
}

/// Memory that holds the range, and the offset in the piece at which it starts; `None` if the piece cannot be given, which is
/// noted then.
async fn load(shared: &Arc<Shared>, request: Request) -> Result<Option<(Arc<Vec<u8>>, u32)>, LinkError> {
    if let Some((data, base)) = lock(&shared.cache).get(request.piece, request.begin) {
        let end = u64::from(base) + u64::try_from(data.len()).expect("fits");
        if u64::from(request.begin + request.len) <= end {
            return Ok(Some((data, base)));
        }
    }
    let base = request.begin / SEGMENT_LEN * SEGMENT_LEN;
    // A request may reach past its segment; then the run is longer.
    let piece_len = shared.geometry.len_of(request.piece);
    let end = (base + SEGMENT_LEN).max(request.begin + request.len).min(piece_len);
    let len = usize::try_from(end - base).expect("fits usize");
    let reading = Arc::clone(shared);
    let read = tokio::task::spawn_blocking(move || {
        let read = read_right(&reading, request.piece, base, len);
        if let Err(error) = &read {
            reading.withhold(request.piece, &error.to_string());
        }
        read.ok()
    });
    Ok(read.await.map_err(io::Error::other)?.map(|data| (data, base)))
}

/// Reads a run of a piece. Who began with a complete store has never hashed it: then all of the piece is read and hashed the
/// first time, so that what is damaged here costs the room nothing. Blocks.
fn read_right(shared: &Shared, piece: PieceIndex, base: u32, len: usize) -> io::Result<Arc<Vec<u8>>> {
    if shared.is_unchecked(piece) {
        let mut whole = shared.pool.get(usize::try_from(shared.geometry.len_of(piece)).expect("fits usize"));
        shared.storage.read(piece, 0, &mut whole)?;
        if hashes::digest(&whole) != *shared.meta.piece_hash(piece) {
            return Err(io::Error::other("its hash is wrong, so the copy here is damaged"));
        }
        shared.checked(piece);
        let start = usize::try_from(base).expect("fits usize");
        let data = Arc::new(whole[start..start + len].to_vec());
        let unused = lock(&shared.cache).put_piece(piece, whole);
        unused.into_iter().for_each(|buffer| shared.pool.put(buffer));
        return Ok(data);
    }
    let mut data = shared.pool.get(len);
    shared.storage.read(piece, base, &mut data)?;
    let data = Arc::new(data);
    let unused = lock(&shared.cache).put_segment(piece, base, Arc::clone(&data));
    unused.into_iter().for_each(|buffer| shared.pool.put(buffer));
    Ok(data)
}

/// Writes parts, all of them if the peer takes them. Of one that does not, a copy of what is left comes back, still to be
/// written: so what the parts lie in is held only by those whose turn it is.
async fn send(writer: &mut OwnedWriteHalf, parts: &[&[u8]]) -> Result<Vec<u8>, LinkError> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        let Ok(written) = timeout(SLOT_STALL, writer.write_vectored(left)).await else {
            return Ok(left.iter().map(|part| &**part).collect::<Vec<_>>().concat());
        };
        let written = written?;
        if written == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(Vec::new())
}

/// Writes what the peer would not take at once. It loses its turn meanwhile, not what it asked for.
async fn send_rest(shared: &Shared, link: &Link, writer: &mut OwnedWriteHalf, rest: &[u8]) -> Result<(), LinkError> {
    if !rest.is_empty() {
        shared.stalled(link);
        writer.write_all(rest).await?;
        shared.caught_up(link);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing;
    use crate::{Have, Options};

    fn addr(ip: [u8; 4]) -> SocketAddr {
        SocketAddr::from((ip, 6881))
    }

    fn bytes_of(messages: &[Message<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        messages.iter().for_each(|message| wire::encode(message, &mut out));
        out
    }

    /// However often the peer says it, and in whatever way.
    #[test]
    fn the_engine_hears_of_a_piece_once() {
        let shared = testing::shared(200, 16384, &Options::default());
        let (link, _) = shared.admit([1; 20], addr([10, 0, 0, 1]), false).expect("taken in");
        let [early, late] = [3, 77].map(|index| shared.geometry.piece(index).expect("one of 200"));
        let mut some = PieceSet::full(shared.geometry);
        some.remove(late);
        let first = Message::Bitfield(some);
        let bytes = bytes_of(&[first.clone(), first.clone(), Message::Have(early)]);
        let mut said = PieceSet::new(shared.geometry);
        let mut sorted = Sorted::default();
        let used = sort_messages(&shared, &link, &bytes, &mut said, &mut sorted);
        assert_eq!((used.expect("no nonsense"), sorted.haves.len()), (bytes.len(), 199));
        // aria2 says it this way when it has got many at a time.
        sorted.haves.clear();
        let bytes = bytes_of(&[Message::Bitfield(PieceSet::full(shared.geometry)), first]);
        sort_messages(&shared, &link, &bytes, &mut said, &mut sorted).expect("no nonsense");
        assert_eq!(sorted.haves, [late]);
    }

    /// Between the copying of a block and the engine's hearing of it the peer chokes us, goes, or is given up; what it gave is
    /// taken all the same, as no second copy would be.
    #[tokio::test]
    async fn a_block_that_is_in_its_buffer_counts_whatever_became_of_its_giver() {
        enum Fate {
            Chokes,
            Goes,
            IsGivenUp,
        }
        for fate in [Fate::Chokes, Fate::Goes, Fate::IsGivenUp] {
            let mut shared = testing::shared(1, 2 * BLOCK_LEN, &Options::default());
            let piece = shared.geometry.piece(0).expect("the only one");
            let (giver, _) = shared.admit([1; 20], addr([10, 0, 0, 1]), false).expect("taken in");
            let (other, _) = shared.admit([2; 20], addr([10, 0, 0, 2]), false).expect("taken in");
            for link in [&giver, &other] {
                assert!(shared.peer_has(link, vec![piece]));
                shared.peer_lets_us_ask(link, true);
            }
            shared.compose(&giver, &mut Vec::new());
            assert_eq!(lock(&giver.asked).len(), 2, "asked for both blocks");
            let block = vec![0; BLOCK_LEN as usize];
            let mut bytes = bytes_of(&[Message::Piece { piece, begin: 0, data: &block }]);
            if matches!(fate, Fate::Chokes) {
                bytes.extend(bytes_of(&[Message::Choke]));
            }
            let (mut said, mut sorted) = (PieceSet::new(shared.geometry), Sorted::default());
            sort_messages(&shared, &giver, &bytes, &mut said, &mut sorted).expect("no nonsense");
            match fate {
                Fate::Chokes => {}
                Fate::Goes => shared.remove(&giver, false),
                Fate::IsGivenUp => {
                    testing::age(&mut shared, Duration::from_secs(600));
                    testing::tick(&shared);
                    shared.compose(&giver, &mut Vec::new());
                }
            }
            shared.blocks_arrived(&giver, &sorted.arrived);
            shared.compose(&other, &mut Vec::new());
            let asked: Vec<Ask> = lock(&other.asked).keys().copied().collect();
            assert_eq!(asked, [Ask { piece, block: 1 }], "only the block that is not here");
            let bytes = bytes_of(&[Message::Piece { piece, begin: BLOCK_LEN, data: &block }]);
            take_messages(&shared, &other, &bytes, &mut said).expect("no nonsense");
            let mut outcome = shared.completion();
            let complete = timeout(Duration::from_secs(60), outcome.wait_for(Option::is_some)).await;
            assert!(complete.is_ok(), "the piece is whole");
        }
    }

    /// A peer asks for all of a piece and reads none of it: what it is still to be sent is in no piece.
    #[tokio::test]
    async fn who_reads_nothing_keeps_no_piece_in_memory() {
        let shared = testing::shared(2, 8 << 20, &Options { have: Have::All, ..Options::default() });
        let (link, _) = shared.admit([1; 20], addr([10, 0, 0, 1]), false).expect("taken in");
        let piece = shared.geometry.piece(1).expect("the second of two");
        let data: Vec<u8> = (0..8u32 << 20).map(|at| u8::try_from(at / 999 % 251).expect("small")).collect();
        lock(&shared.cache).put_piece(piece, data.clone());
        let held = || Arc::strong_count(&lock(&shared.cache).get(piece, 0).expect("cached").0) - 2;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let connecting = TcpStream::connect(listener.local_addr().expect("an address"));
        let (ours, theirs) = tokio::join!(connecting, listener.accept());
        let (ours, (mut theirs, _)) = (ours.expect("connecting"), theirs.expect("accepting"));
        SockRef::from(&ours).set_send_buffer_size(64 << 10).expect("a small buffer");
        SockRef::from(&theirs).set_recv_buffer_size(64 << 10).expect("a small buffer");
        let (_, mut writer) = ours.into_split();
        let blocks = 0..shared.geometry.blocks_of(piece);
        let wishes: Vec<_> =
            blocks.map(|block| Wish::Request(Request::block(&shared.geometry, piece, block))).collect();
        shared.peer_wants(&link, &wishes).expect("we hold it");
        let serving = async {
            // Nobody else wants a turn, so it always has one.
            while let Some(first) = shared.next_upload(&link) {
                serve(&shared, &link, &mut writer, first).await.expect("a good connection");
            }
        };
        let mut serving = std::pin::pin!(serving);
        assert!(timeout(SLOT_STALL * 10, &mut serving).await.is_err(), "the socket does not take it all");
        let letting_go = async {
            while held() > 0 {
                tokio::time::sleep(SLOT_STALL).await;
            }
        };
        tokio::select! {
            () = &mut serving => panic!("nobody has read it"),
            let_go = timeout(SLOT_STALL * 300, letting_go) => let_go.expect("the piece is let go"),
        }
        // All of it comes once the peer reads.
        let reading = async {
            let mut bytes = Vec::new();
            for (index, block) in data.chunks_exact(16384).enumerate() {
                bytes.resize(13 + block.len(), 0);
                theirs.read_exact(&mut bytes).await.expect("a block");
                let begin = u32::try_from(index * 16384).expect("small");
                assert_eq!(bytes, bytes_of(&[Message::Piece { piece, begin, data: block }]));
            }
        };
        tokio::join!(serving, reading);
    }
}
