//! Removes all that meshd put on this host (`meshd cleanup`).

use crate::{Overlay, error::Error, link, route};

/// Removes every link of meshd's, whatever its cluster, its routes and its packet filter. Goes on
/// past failures.
pub(crate) async fn sweep(overlay: &Overlay) -> Result<Vec<String>, Vec<Error>> {
    let socket = &overlay.socket;
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    let links = link::all(socket).await.map_err(|e| vec![e])?;
    let ours = links.iter().filter(|d| d.is_ours()).map(|d| (d.index, d)).collect();
    match route::all(socket).await {
        Ok(all) => {
            for r in route::ours(&all, &ours) {
                match route::remove(socket, &r).await {
                    Ok(()) => removed.push(format!("route {} over {}", r.dst, r.dev)),
                    Err(e) => failed.push(e),
                }
            }
        }
        Err(e) => failed.push(e),
    }
    for device in links.iter().filter(|d| d.is_ours()) {
        match link::remove(socket, device).await {
            Ok(()) => removed.push(format!("link {}", device.name)),
            Err(e) => failed.push(e),
        }
    }
    match overlay.filter.exists().await {
        Ok(false) | Err(Error::NftMissing) => {}
        Ok(true) => match overlay.filter.set(None).await {
            Ok(()) => removed.push("nftables table inet meshd".into()),
            Err(e) => failed.push(e),
        },
        Err(e) => failed.push(e),
    }
    match overlay.filter.pass_no_more().await {
        Ok(false) | Err(Error::NftMissing) => {}
        Ok(true) => removed.push("rules in the chain FORWARD".into()),
        Err(e) => failed.push(e),
    }
    removed.sort();
    if failed.is_empty() { Ok(removed) } else { Err(failed) }
}
