//! What the process that becomes the command is told once its endpoint exists.

use std::net::IpAddr;

use mesh_api::rest::EndpointView;
use mesh_core::Refusal;
use nix::unistd::{Gid, Group, Uid, User};
use serde::{Deserialize, Serialize};

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The command's host name.
    pub hostname: String,
    /// The endpoint's name.
    pub name: String,
    /// The endpoints' addresses, those of the first network first.
    pub addresses: Vec<IpAddr>,
    /// Where names are resolved.
    pub nameserver: IpAddr,
    /// Who the command runs as; none: who meshctl runs as.
    pub identity: Option<Identity>,
}

impl Setup {
    /// For endpoints as meshd describes them; none when there is none, or the first lacks the gateway.
    pub fn of(hostname: &str, identity: Option<Identity>, endpoints: &[EndpointView]) -> Option<Self> {
        let first = endpoints.first()?;
        Some(Self {
            hostname: hostname.to_owned(),
            name: first.name.clone(),
            addresses: endpoints.iter().flat_map(EndpointView::ips).collect(),
            nameserver: first.gateway.or(first.gateway6)?,
            identity,
        })
    }
}

/// Who a command runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Name and home directory, of a user who has them.
    pub account: Option<(String, String)>,
}

impl Identity {
    /// Looks `USER[:GROUP]` up on this host; each is a name or a number.
    pub fn find(text: &str) -> Result<Self, Refusal> {
        let (user, group) = text.split_once(':').map_or((text, None), |(u, g)| (u, Some(g)));
        let unknown = |what: &str, name: &str| Refusal::not_found(format!("no {what} {name:?} on this host: use a name or a number"));
        let fault = |e: nix::Error| Refusal::other(format!("cannot look up {text:?}: {e}"));
        let number = user.parse::<u32>().ok();
        let known = match number {
            Some(uid) => User::from_uid(Uid::from_raw(uid)),
            None => User::from_name(user),
        };
        let known = known.map_err(fault)?;
        let gid = match group {
            Some(group) => match group.parse::<u32>() {
                Ok(gid) => Some(gid),
                Err(_) => Some(
                    Group::from_name(group)
                        .map_err(fault)?
                        .ok_or_else(|| unknown("group", group))?
                        .gid
                        .as_raw(),
                ),
            },
            None => known.as_ref().map(|u| u.gid.as_raw()),
        };
        let uid = number
            .or(known.as_ref().map(|u| u.uid.as_raw()))
            .ok_or_else(|| unknown("user", user))?;
        let gid = gid.ok_or_else(|| {
            Refusal::malformed(format!(
                "user {uid} is in no list of this host: say the group too, like {uid}:{uid}"
            ))
        })?;
        Ok(Self {
            uid,
            gid,
            account: known.map(|u| (u.name, u.dir.to_string_lossy().into_owned())),
        })
    }

    /// The environment that a login gives (environ(7)).
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        match &self.account {
            Some((name, home)) => vec![("USER", name.clone()), ("LOGNAME", name.clone()), ("HOME", home.clone())],
            None => vec![("HOME", "/".to_owned())],
        }
    }

    /// Becomes it; there is no way back.
    pub fn take_on(&self) -> nix::Result<()> {
        let gid = Gid::from_raw(self.gid);
        match self
            .account
            .as_ref()
            .and_then(|(name, _)| std::ffi::CString::new(name.as_str()).ok())
        {
            Some(name) => nix::unistd::initgroups(&name, gid)?,
            None => nix::unistd::setgroups(&[gid])?,
        }
        nix::unistd::setgid(gid)?;
        nix::unistd::setuid(Uid::from_raw(self.uid))
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::RefusalKind;

    use super::*;

    #[test]
    fn users_by_name_and_number() {
        let find = |text: &str| Identity::find(text).map(|i| (i.uid, i.gid)).map_err(|e| e.kind);
        assert_eq!(find("root"), Ok((0, 0)));
        assert_eq!(find("0"), Ok((0, 0)));
        assert_eq!(find("root:7"), Ok((0, 7)));
        assert_eq!(find("4294900000:12"), Ok((4_294_900_000, 12)));
        assert_eq!(find("4294900000"), Err(RefusalKind::Malformed));
        assert_eq!(find("no-such-user"), Err(RefusalKind::NotFound));
        assert_eq!(find("root:no-such-group"), Err(RefusalKind::NotFound));
        assert_eq!(find(":root"), Err(RefusalKind::NotFound));
        assert_eq!(find("-1"), Err(RefusalKind::NotFound));
    }
}
