//! The packet filter: one nftables table, `inet meshd`, that keeps networks apart and gives them a
//! way out.
//!
//! Its rules are always the same; all that differs between hosts is in the elements of its sets. So
//! a table can be read back: the elements give the value, and the rest must be what this host's
//! `nft` shows of a table that was just written, which is found out once in a namespace of its own.

mod generation;
mod listing;
mod pass;
mod program;
mod ruleset;

use std::sync::{Arc, Mutex, PoisonError};

use mesh_core::nft::Nft;
use tokio::sync::OnceCell;

use crate::{error::Error, netns};
use generation::Generation;
use listing::{Listing, Skeleton};
use pass::{FAMILIES, Forward};
use program::Program;

/// The table of one network namespace.
#[derive(Debug)]
pub(crate) struct Filter {
    netns: Arc<netns::Netns>,
    program: Program,
    /// `None`: this kernel does not tell it.
    generation: OnceCell<Option<Generation>>,
    /// What was read last, and the generation that it was at least as new as.
    read: Mutex<Option<(u32, Seen)>>,
    skeleton: OnceCell<Skeleton>,
    /// What was written last: it is wanted back as it was given, lists in the order they had.
    last: Mutex<Option<Nft>>,
}

/// The table, and whether the host's other ones let containers' packets pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// `None` when there is none, an empty value when it is not as it would be written for any value.
    pub(crate) nft: Option<Nft>,
    /// A FORWARD chain of iptables drops what it does not know, and does not know us.
    pub(crate) blocked: bool,
}

impl Filter {
    pub(crate) fn new(netns: Arc<netns::Netns>) -> Self {
        Self {
            program: Program::new(netns.clone()),
            netns,
            generation: OnceCell::new(),
            read: Mutex::new(None),
            skeleton: OnceCell::new(),
            last: Mutex::new(None),
        }
    }

    /// Replaces the table in one transaction; `None` removes it.
    pub(crate) async fn set(&self, nft: Option<&Nft>) -> Result<(), Error> {
        let (request, text) = match nft {
            Some(nft) => ("load the table inet meshd", ruleset::render(nft)?),
            None => ("remove the table inet meshd", ruleset::REMOVE.to_owned()),
        };
        self.program.load(request, text).await?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = nft.cloned();
        Ok(())
    }

    /// Reads the table, and the chains that are in our way.
    pub(crate) async fn get(&self) -> Result<Seen, Error> {
        let now = self.generation().await;
        {
            let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, value)) = read.as_ref().filter(|(then, _)| now == Some(*then)) {
                return Ok(value.clone());
            }
        }
        let mut blocked = false;
        for family in FAMILIES {
            blocked |= self.forward(family).await?.is_some_and(|f| f.is_blocking());
        }
        let value = Seen {
            nft: self.list().await?,
            blocked,
        };
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = now.map(|now| (now, value.clone()));
        Ok(value)
    }

    /// A family's FORWARD chain of iptables, where there is one.
    async fn forward(&self, family: &'static str) -> Result<Option<Forward>, Error> {
        let text = self.program.list_forward(family).await?;
        Ok(text.as_deref().and_then(Forward::read))
    }

    /// Lets containers' packets pass the chains that are in their way.
    pub(crate) async fn pass(&self) -> Result<(), Error> {
        let mut commands = String::new();
        for family in FAMILIES {
            if let Some(forward) = self.forward(family).await?.filter(Forward::is_blocking) {
                commands += &forward.passing(family);
            }
        }
        self.program.load("let containers pass the chain FORWARD", commands).await
    }

    /// Takes that back; true when there was something.
    pub(crate) async fn pass_no_more(&self) -> Result<bool, Error> {
        let mut commands = String::new();
        for family in FAMILIES {
            if let Some(forward) = self.forward(family).await? {
                commands += &forward.removal(family);
            }
        }
        let had = !commands.is_empty();
        self.program
            .load("remove the rules from the chain FORWARD", commands)
            .await
            .map(|()| had)
    }

    /// The ruleset's generation, where the kernel tells it.
    async fn generation(&self) -> Option<u32> {
        let open = async || {
            let opened = self.netns.run(Generation::open).await;
            let opened = opened.and_then(|o| o.map_err(Error::io("open a socket for nftables")));
            opened
                .inspect_err(|e| tracing::debug!(error = %e, "the table is listed at every look"))
                .ok()
        };
        self.generation.get_or_init(open).await.as_ref()?.get().ok()
    }

    async fn list(&self) -> Result<Option<Nft>, Error> {
        let Some(text) = self.program.list().await? else {
            return Ok(None);
        };
        let skeleton = self.skeleton.get_or_try_init(|| self.reference()).await?;
        let Some(seen) = Listing::read(&text).filter(|l| l.skeleton == *skeleton).and_then(|l| l.value()) else {
            return Ok(Some(Nft::default()));
        };
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Some(
            last.as_ref()
                .filter(|last| ruleset::canonical(last) == seen)
                .cloned()
                .unwrap_or(seen),
        ))
    }

    /// True when there is a table, whatever is in it.
    pub(crate) async fn exists(&self) -> Result<bool, Error> {
        self.program.list().await.map(|text| text.is_some())
    }

    /// What `nft` shows of a fresh table, without elements.
    async fn reference(&self) -> Result<Skeleton, Error> {
        let text = Program::try_out(ruleset::render(&Nft::default())?).await?;
        Listing::read(&text).map(|l| l.skeleton).ok_or_else(|| Error::Nft {
            request: "list the table inet meshd".into(),
            stderr: "its JSON is not understood".into(),
        })
    }
}
