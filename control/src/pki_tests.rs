//! What a certificate must look like to name a node, and what the authority takes from a request.

use super::*;

fn id(bits: u64) -> Id {
    Id::from_bits(bits)
}

fn month() -> Range<SystemTime> {
    let now = SystemTime::now();
    now..now + Duration::from_secs(86_400)
}

#[test]
fn names_are_read_as_they_are_written_and_in_no_other_form() {
    let name = NodeName {
        cluster: id(7),
        node: id(9),
        role: Role::Worker,
        raft_id: 0,
    };
    assert_eq!(NodeName::parse(&name.to_string()), Ok(name));
    let (c, n) = (id(7), id(9));
    for bad in [
        "".to_owned(),
        "spiffe://".to_owned(),
        format!("https://{c}/node/{n}/worker"),
        format!("spiffe://{c}/node/{n}/Worker"),
        format!("spiffe://{c}/node/{n}/root"),
        format!("spiffe://{c}/node/{n}"),
        format!("spiffe://{c}/node/{n}/worker/"),
        format!("spiffe://{c}/node/{n}/worker/manager"),
        format!("spiffe://{c}/nodes/{n}/worker"),
        format!("spiffe://{c}//node/{n}/worker"),
        format!("spiffe://evil/node/{n}/worker"),
        format!("spiffe://{c}/node/../{n}/worker"),
        format!("SPIFFE://{c}/node/{n}/worker"),
    ] {
        assert!(matches!(NodeName::parse(&bad), Err(PeerError::Form(_))), "{bad}");
    }
}

#[test]
fn exactly_one_uri_of_our_cluster() {
    let ca = Authority::create(id(1)).unwrap();
    let csr = signing_request(&new_key().unwrap()).unwrap();
    let uri = |cluster: u64, role| {
        NodeName {
            cluster: id(cluster),
            node: id(5),
            role,
            raft_id: 0,
        }
        .to_string()
    };
    let cases: [(Vec<String>, Result<Role, PeerError>); 7] = [
        (vec![uri(1, Role::Manager)], Ok(Role::Manager)),
        (vec![uri(1, Role::Worker)], Ok(Role::Worker)),
        (vec![], Err(PeerError::Uris(0))),
        (vec![uri(1, Role::Worker), uri(1, Role::Manager)], Err(PeerError::Uris(2))),
        (vec![uri(1, Role::Worker), "https://example.org/".into()], Err(PeerError::Uris(2))),
        (
            vec![uri(2, Role::Manager)],
            Err(PeerError::Cluster {
                found: id(2),
                expected: id(1),
            }),
        ),
        (
            vec!["spiffe://other/ns/a/sa/b".into()],
            Err(PeerError::Form("spiffe://other/ns/a/sa/b".into())),
        ),
    ];
    for (uris, expected) in cases {
        let cert = certificate(&ca.sign_names(&csr, &uris, 0, month()).unwrap()).unwrap();
        assert_eq!(NodeName::of_member(&cert, id(1)).map(|n| n.role), expected, "{uris:?}");
    }
    assert!(
        matches!(
            NodeName::of_member(&certificate(ca.cert_pem()).unwrap(), id(1)),
            Err(PeerError::Uris(0))
        ),
        "the authority is no node"
    );
    assert!(matches!(
        NodeName::of_member(&vec![1, 2, 3].into(), id(1)),
        Err(PeerError::Unreadable(_))
    ));
}

#[test]
fn a_role_that_is_not_the_needed_one_is_refused() {
    let worker = NodeName {
        cluster: id(1),
        node: id(2),
        role: Role::Worker,
        raft_id: 0,
    };
    assert_eq!(
        worker.require(Role::Manager),
        Err(PeerError::Role {
            found: "worker",
            expected: "manager"
        })
    );
    assert_eq!(worker.require(Role::Worker), Ok(worker));
}

#[test]
fn only_the_key_of_a_request_is_taken() {
    let ca = Authority::create(id(1)).unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut wish = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wish.subject_alt_names.push(SanType::URI(
        NodeName {
            cluster: id(1),
            node: id(66),
            role: Role::Manager,
            raft_id: 0,
        }
        .to_string()
        .try_into()
        .unwrap(),
    ));
    let csr = wish.serialize_request(&key).unwrap().pem().unwrap();
    let manager = certificate(&ca.sign(&csr, id(5), Role::Manager, 77).unwrap()).unwrap();
    assert_eq!(
        NodeName::of_member(&manager, id(1)).map(|n| (n.role, n.raft_id)),
        Ok((Role::Manager, 77))
    );
    let der = certificate(&ca.sign(&csr, id(5), Role::Worker, 0).unwrap()).unwrap();
    assert_eq!(
        NodeName::of_member(&der, id(1)),
        Ok(NodeName {
            cluster: id(1),
            node: id(5),
            role: Role::Worker,
            raft_id: 0,
        })
    );
    let (_, cert) = X509Certificate::from_der(&der).unwrap();
    assert!(!cert.is_ca());
    assert_eq!(cert.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
    assert_eq!(cert.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 2);
    let eku = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(eku.client_auth && eku.server_auth && !eku.any);
}

#[test]
fn a_request_must_be_signed_by_its_key() {
    let ca = Authority::create(id(1)).unwrap();
    let pem = signing_request(&new_key().unwrap()).unwrap();
    let der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut forged = der.to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(&forged);
    let forged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
    assert!(ca.sign(&forged, id(5), Role::Worker, 0).is_err());
    for bad in ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"] {
        assert!(ca.sign(bad, id(5), Role::Worker, 0).is_err());
    }
    assert!(matches!(
        ca.sign(&"x".repeat(MAX_CSR + 1), id(5), Role::Worker, 0),
        Err(PkiError::TooLarge(_))
    ));
    let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let csr = CertificateParams::default().serialize_request(&other).unwrap().pem().unwrap();
    assert!(matches!(ca.sign(&csr, id(5), Role::Worker, 0), Err(PkiError::Key)));
}

#[test]
fn dates_allow_for_a_clock_an_hour_behind() {
    let ca = Authority::create(id(1)).unwrap();
    let cert = ca
        .sign(&signing_request(&new_key().unwrap()).unwrap(), id(5), Role::Worker, 0)
        .unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    let valid = validity(&certificate(&cert).unwrap()).unwrap();
    assert!((now - 3610..=now - 3590).contains(&valid.start));
    assert!((now + 90 * 86_400 - 10..=now + 90 * 86_400 + 10).contains(&valid.end));
    let ca_valid = validity(&certificate(ca.cert_pem()).unwrap()).unwrap();
    assert!(ca_valid.start <= now - 3590 && ca_valid.end > now + 3649 * 86_400);
}

#[test]
fn a_node_id_follows_from_the_key() {
    let key = new_key().unwrap();
    let (a, b) = (signing_request(&key).unwrap(), signing_request(&key).unwrap());
    assert_ne!(a, b, "ECDSA signatures differ");
    assert_eq!(id_of_request(&a).unwrap(), id_of_request(&b).unwrap());
    assert_ne!(
        id_of_request(&a).unwrap(),
        id_of_request(&signing_request(&new_key().unwrap()).unwrap()).unwrap()
    );
}

#[test]
fn an_authority_is_taken_up_again() {
    let ca = Authority::create(id(1)).unwrap();
    let again = Authority::load(id(1), ca.cert_pem(), ca.key_pem()).unwrap();
    assert_eq!(ca.digest().unwrap(), again.digest().unwrap());
    assert!(Authority::load(id(1), "x", ca.key_pem()).is_err());
    assert!(Authority::load(id(1), ca.cert_pem(), "x").is_err());
    assert!(!format!("{ca:?}").contains("PRIVATE"));
}
