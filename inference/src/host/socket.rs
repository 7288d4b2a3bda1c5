//! The control socket: a pair of `SOCK_SEQPACKET` ends. A frame is one packet, so that there is no length to lie about,
//! and descriptors travel with the frame they belong to.

use super::protocol::{self, MAX_FRAME};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most descriptors of one frame.
const MAX_DESCRIPTORS: usize = 2;

/// A new pair: ours, which does not block, and the host's, which does.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

/// Sends one frame.
pub(crate) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut frame = Vec::new();
    protocol::encode(message, MAX_FRAME, &mut frame).map_err(|_| invalid("a frame is too long"))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(invalid("too many descriptors for one frame"));
    }
    loop {
        match rustix::net::sendmsg(
            &socket,
            &[IoSlice::new(&frame)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one frame. None at the end of the other side.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    buffer.resize(MAX_FRAME, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(invalid("a frame is too long"));
    }
    let frame = buffer
        .get(..received.bytes)
        .ok_or_else(|| invalid("a frame is too long"))?;
    let message = protocol::decode(frame).map_err(|_| invalid("a frame cannot be read"))?;
    Ok(Some((message, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::super::protocol::Order;
    use super::*;

    #[test]
    fn frames_keep_their_bounds_and_their_descriptors() {
        let (ours, theirs) = pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let load = Order::Load {
            session: 3,
            length: 9,
        };
        send(&ours, &load, &[file.as_fd()]).unwrap();
        send(&ours, &Order::Ping(1), &[]).unwrap();
        let mut buffer = Vec::new();
        let (first, descriptors) = receive::<Order>(&theirs, &mut buffer).unwrap().unwrap();
        assert!(matches!(
            first,
            Order::Load {
                session: 3,
                length: 9
            }
        ));
        assert_eq!(descriptors.len(), 1);
        let (second, descriptors) = receive::<Order>(&theirs, &mut buffer).unwrap().unwrap();
        assert!(matches!(second, Order::Ping(1)) && descriptors.is_empty());
        rustix::net::send(&theirs, b"no frame at all", SendFlags::empty()).unwrap();
        assert!(receive::<Order>(&ours, &mut buffer).is_err());
        rustix::net::send(&theirs, &vec![1; MAX_FRAME + 1], SendFlags::empty()).unwrap();
        assert!(receive::<Order>(&ours, &mut buffer).is_err());
        drop(theirs);
        assert!(receive::<Order>(&ours, &mut buffer).unwrap().is_none());
    }
}
