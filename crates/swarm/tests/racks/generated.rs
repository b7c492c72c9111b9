//! Peers act as a generator decides: the other peers always finish, and nothing unverified is written.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metainfo::{Metainfo, PieceIndex};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest};
use swarm::bits::PieceSet;
use swarm::wire::{HANDSHAKE_LEN, Handshake, Message, Request, decode, encode};
use swarm::{Have, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{Image, complete, image, options, pieces, receiver, seeder};

/// One action of a broken peer.
#[derive(Clone, Debug)]
enum Act {
    /// Sends any bytes.
    Noise(Vec<u8>),
    /// Sends a message with these fields, whether they make sense or not.
    Say { kind: u8, piece: u32, begin: u32, len: u32 },
    /// Answers this many requests, every `lie`th with wrong bytes, every `cut`th with too few, every `silent`th not at
    /// all.
    Answer { count: u8, lie: u8, cut: u8, silent: u8 },
    /// Does nothing for this many milliseconds.
    Wait(u8),
}

/// The actions of a broken peer on each of its connections.
#[derive(Clone, Debug)]
struct Script {
    /// How many eighths of the pieces it claims to have.
    claims: u32,
    acts: Vec<Act>,
}

fn script() -> impl Strategy<Value = Script> {
    let act = prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 1..200).prop_map(Act::Noise),
        3 => (any::<u8>(), 0..20u32, any::<u32>(), any::<u32>())
            .prop_map(|(kind, piece, begin, len)| Act::Say { kind, piece, begin: begin % 70_000, len: len % 70_000 }),
        6 => (1..40u8, any::<u8>(), any::<u8>(), any::<u8>())
            .prop_map(|(count, lie, cut, silent)| Act::Answer { count, lie, cut, silent }),
        1 => (0..60u8).prop_map(Act::Wait),
    ];
    (prop_oneof![Just(8), 0..8u32], prop::collection::vec(act, 1..8)).prop_map(|(claims, acts)| Script { claims, acts })
}

/// Dials `addr` again and again, always under the same name, until it is dropped.
async fn play(script: Script, image: Arc<Image>, number: u8, addr: SocketAddr) {
    loop {
        if let Ok(stream) = TcpStream::connect(addr).await {
            let _ = perform(&script, &image, number, stream).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn perform(script: &Script, image: &Image, number: u8, mut stream: TcpStream) -> std::io::Result<()> {
    let geometry = image.meta.geometry;
    let mut peer_id = *b"-XX0000-generated  \0";
    peer_id[19] = number;
    stream.write_all(&Handshake { reserved: [0; 8], infohash: image.meta.infohash, peer_id }.encode()).await?;
    stream.read_exact(&mut [0; HANDSHAKE_LEN]).await?;
    let mut claimed = PieceSet::new(geometry);
    for piece in geometry.pieces().filter(|piece| piece.get() % 8 < script.claims) {
        claimed.insert(piece);
    }
    let mut out = Vec::new();
    encode(&Message::Bitfield(claimed), &mut out);
    encode(&Message::Unchoke, &mut out);
    stream.write_all(&out).await?;
    let mut unread = Vec::new();
    for act in &script.acts {
        out.clear();
        match *act {
            Act::Noise(ref bytes) => out.extend(bytes),
            Act::Say { kind, piece, begin, len } => {
                let piece = pieces(20).piece(piece).expect("one of those generated");
                say(&image.meta, kind, piece, begin, len, &mut out);
            }
            Act::Answer { count, lie, cut, silent } => {
                for answered in 1..=count {
                    let Request { piece, begin, len } = next_request(&mut stream, &mut unread, &image.meta).await?;
                    let is_due = |every: u8| answered.checked_rem(every % 16) == Some(0);
                    let start = geometry.piece_range(piece).start as usize + begin as usize;
                    let mut data = image.content[start..start + len as usize].to_vec();
                    if is_due(lie) {
                        data[usize::from(answered)] ^= 1;
                    }
                    if is_due(cut) {
                        data.truncate(data.len() / 2);
                    }
                    if !is_due(silent) {
                        out.clear();
                        encode(&Message::Piece { piece, begin, data: &data }, &mut out);
                        stream.write_all(&out).await?;
                    }
                }
                out.clear();
            }
            Act::Wait(ms) => tokio::time::sleep(Duration::from_millis(ms.into())).await,
        }
        stream.write_all(&out).await?;
    }
    Ok(())
}

fn say(meta: &Metainfo, kind: u8, piece: PieceIndex, begin: u32, len: u32, out: &mut Vec<u8>) {
    let request = Request { piece, begin, len };
    let data = vec![66; len as usize];
    let message = match kind % 10 {
        0 => Message::KeepAlive,
        1 => Message::Choke,
        2 => Message::Unchoke,
        3 => Message::Interested,
        4 => Message::NotInterested,
        5 => Message::Have(piece),
        6 => Message::Bitfield(PieceSet::full(pieces(meta.geometry.piece_count() + begin % 9))),
        7 => Message::Request(request),
        8 => Message::Piece { piece, begin, data: &data },
        _ => Message::Cancel(request),
    };
    encode(&message, out);
}

/// Their next request; all other messages are ignored.
async fn next_request(stream: &mut TcpStream, unread: &mut Vec<u8>, meta: &Metainfo) -> std::io::Result<Request> {
    loop {
        while let Ok(Some((message, used))) = decode(unread, &meta.geometry) {
            let request = if let Message::Request(request) = message { Some(request) } else { None };
            unread.drain(..used);
            if let Some(request) = request {
                return Ok(request);
            }
        }
        let wait = tokio::time::timeout(Duration::from_millis(100), stream.read_buf(unread));
        match wait.await {
            Ok(Ok(0)) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => drop(read?),
            Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 30, ..ProptestConfig::default() })]

    #[test]
    fn whatever_broken_peers_do_the_others_finish(scripts in prop::collection::vec(script(), 1..4)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("threads").block_on(async {
            let image = Arc::new(image((1 << 20) - 5_000, 64 << 10, None));
            // It is slow enough for every peer to get requests.
            let slow = Options { up_bytes_per_s: Some(2 << 20), ..options(Have::All) };
            let seeder = seeder(&image, slow).await;
            let peers = vec![seeder.local_addr()];
            let (one, one_store) = receiver(&image, Options { peers: peers.clone(), ..options(Have::None) }).await;
            let peers = vec![seeder.local_addr(), one.local_addr()];
            let (two, two_store) = receiver(&image, Options { peers, ..options(Have::None) }).await;
            let mut broken = tokio::task::JoinSet::new();
            for (number, script) in (0..).zip(&scripts) {
                for addr in [seeder.local_addr(), one.local_addr(), two.local_addr()] {
                    broken.spawn(play(script.clone(), Arc::clone(&image), number, addr));
                }
            }
            complete(&one).await;
            complete(&two).await;
            assert!(one_store.is_right() && two_store.is_right(), "{scripts:?}");
        });
    }
}
