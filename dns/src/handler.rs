//! Answers one query: from the name table, or through the host's resolvers.
//!
//! | asked for                                             | answer                               |
//! |-------------------------------------------------------|--------------------------------------|
//! | a name the asker sees, with such addresses            | NOERROR, in random order             |
//! | a name the asker sees, without what was asked for     | NOERROR and SOA                      |
//! | a single label, `tasks.x` or `x.<any mesh network>`   | NXDOMAIN and SOA, never forwarded    |
//! | a PTR of a mesh address that the asker may not see    | NXDOMAIN and SOA, never forwarded    |
//! | anything else, and the asker has a way out            | the host's resolvers' answer         |
//! | anything else from an internal network                | NXDOMAIN and SOA                     |
//!
//! On an internal network NXDOMAIN, not REFUSED or SERVFAIL: there the name does not exist, and it is
//! the only one of the three that both glibc and musl take for an answer at once. With REFUSED musl
//! waits its whole 5 s; with SERVFAIL both ask again and report a temporary failure.

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use hickory_proto::{
    op::{Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{PTR, SOA},
    },
};
use hickory_server::{
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use rand::seq::SliceRandom;

use crate::{
    forward::{ForwardError, Forwarder},
    stats::{Counters, count},
    upstream::Question,
    view::{Found, Owner, View},
};

/// How long an asker may remember that something is not there, in seconds.
pub(crate) const NEGATIVE_TTL: u32 = 1;

/// What all gateways answer from.
pub(crate) struct Shared {
    pub(crate) view: ArcSwap<View>,
    pub(crate) forwarder: Forwarder,
    pub(crate) counters: Arc<Counters>,
    /// Of mesh records, in seconds.
    pub(crate) ttl: u32,
}

/// One gateway address's answers.
pub(crate) struct Gateway {
    pub(crate) shared: Arc<Shared>,
    pub(crate) address: IpAddr,
}

/// An answer before it is encoded.
struct Response {
    metadata: Metadata,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

/// What the table has to say.
enum Local {
    Answer(Response),
    /// It is not in the table, and goes to the host's resolvers.
    Forward,
}

#[async_trait::async_trait]
impl RequestHandler for Gateway {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut reply: R) -> ResponseInfo {
        let response = self.answer(request).await;
        let message = MessageResponseBuilder::from_message_request(request).build(
            response.metadata,
            &response.answers,
            &response.authorities,
            [],
            &response.additionals,
        );
        match reply.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(asker = %request.src(), %error, "an answer could not be sent");
                let mut metadata = Metadata::response_from_request(&request.metadata);
                metadata.response_code = ResponseCode::ServFail;
                hickory_proto::op::Header {
                    metadata,
                    counts: Default::default(),
                }
                .into()
            }
        }
    }
}

impl Gateway {
    async fn answer(&self, request: &Request) -> Response {
        let counters = &self.shared.counters;
        count(&counters.queries);
        if let Some(code) = refusal(request) {
            return error(request, code);
        }
        let [question] = request.queries.queries() else {
            return error(request, ResponseCode::FormErr);
        };
        let question = question.original();
        let view = self.shared.view.load_full();
        if let Local::Answer(response) = self.local(&view, request, question) {
            return response;
        }
        let asked = Question::of(request, question);
        match self.shared.forwarder.ask(request.src().ip(), &asked, |a| view.is_gateway(a)).await {
            Ok(answer) => {
                count(&counters.forwarded);
                let mut metadata = answer.metadata;
                metadata.id = request.metadata.id;
                // Whether it is cut for this asker is decided when it is encoded.
                Response {
                    metadata,
                    answers: answer.answers,
                    authorities: answer.authorities,
                    additionals: answer.additionals,
                }
            }
            Err(why) => {
                count(if why == ForwardError::Busy {
                    &counters.forward_busy
                } else {
                    &counters.forward_failed
                });
                let mut response = error(request, ResponseCode::ServFail);
                response.metadata.recursion_available = true;
                response
            }
        }
    }

    fn local(&self, view: &View, request: &Request, question: &Query) -> Local {
        let networks = view.networks_of(self.address, request.src().ip());
        let outward = view.may_forward(self.address, networks);
        let answer = Builder {
            shared: &self.shared,
            view,
            request,
            question,
            outward,
        };
        // Whole addresses only: the branches above them belong to nobody in particular.
        let address = question
            .name()
            .parse_arpa_name()
            .ok()
            .filter(|net| net.prefix_len() == net.max_prefix_len());
        if let Some(address) = address {
            return match view.address(networks, address.addr()) {
                Owner::Name(name) => Local::Answer(answer.pointer(&name)),
                Owner::Unknown => Local::Answer(answer.unknown(2)),
                Owner::Outside => answer.outside(),
            };
        }
        let mut name = question.name().to_ascii();
        name.make_ascii_lowercase();
        match view.name(networks, name.strip_suffix('.').unwrap_or(&name)) {
            Found::Addresses { addresses, zone_labels } => Local::Answer(answer.addresses(addresses, zone_labels)),
            Found::Unknown { zone_labels } => Local::Answer(answer.unknown(zone_labels)),
            Found::Outside => answer.outside(),
        }
    }
}

/// Why a query is not looked at any further.
fn refusal(request: &Request) -> Option<ResponseCode> {
    let question = request.queries.queries().first()?;
    if request.metadata.op_code != OpCode::Query {
        return Some(ResponseCode::NotImp);
    }
    // RFC 6891 §6.1.3: only version 0 exists.
    if request.edns.as_ref().is_some_and(|e| e.version() != 0) {
        return Some(ResponseCode::BADVERS);
    }
    let transfer = matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR);
    (question.query_class() != DNSClass::IN || transfer).then_some(ResponseCode::Refused)
}

fn error(request: &Request, code: ResponseCode) -> Response {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = code;
    metadata.authoritative = false;
    Response {
        metadata,
        answers: Vec::new(),
        authorities: Vec::new(),
        additionals: Vec::new(),
    }
}

/// Makes the answers to one query from the table.
struct Builder<'a> {
    shared: &'a Shared,
    view: &'a View,
    request: &'a Request,
    question: &'a Query,
    /// Names outside the mesh are forwarded for this asker.
    outward: bool,
}

impl Builder<'_> {
    fn response(&self, code: ResponseCode) -> Response {
        let mut response = error(self.request, code);
        response.metadata.authoritative = true;
        response.metadata.recursion_available = self.outward;
        response
    }

    fn positive(&self, records: impl IntoIterator<Item = RData>) -> Response {
        count(&self.shared.counters.answered);
        let mut response = self.response(ResponseCode::NoError);
        // The owner's name is the question's, in the question's case.
        let record = |data| Record::from_rdata(self.question.name().clone(), self.shared.ttl, data);
        response.answers = records.into_iter().map(record).collect();
        response
    }

    fn addresses(&self, addresses: &[IpAddr], zone_labels: u8) -> Response {
        let v4 = || addresses.iter().filter(|a| a.is_ipv4());
        let v6 = || addresses.iter().filter(|a| a.is_ipv6());
        let mut records: Vec<RData> = match self.question.query_type() {
            RecordType::A => v4().map(|a| RData::from(*a)).collect(),
            RecordType::AAAA => v6().map(|a| RData::from(*a)).collect(),
            // RFC 8482 §4.1: one of the record sets is enough.
            RecordType::ANY if v4().next().is_some() => v4().map(|a| RData::from(*a)).collect(),
            RecordType::ANY => v6().map(|a| RData::from(*a)).collect(),
            _ => Vec::new(),
        };
        if records.is_empty() {
            return self.no_data(zone_labels);
        }
        records.shuffle(&mut rand::rng());
        self.positive(records)
    }

    fn pointer(&self, name: &str) -> Response {
        let asked = matches!(self.question.query_type(), RecordType::PTR | RecordType::ANY);
        match Name::from_ascii(name).ok().filter(|_| asked) {
            Some(mut name) => {
                name.set_fqdn(true);
                self.positive([RData::PTR(PTR(name))])
            }
            None => self.no_data(2),
        }
    }

    fn no_data(&self, zone_labels: u8) -> Response {
        count(&self.shared.counters.no_data);
        self.with_soa(ResponseCode::NoError, zone_labels)
    }

    fn unknown(&self, zone_labels: u8) -> Response {
        count(&self.shared.counters.name_errors);
        self.with_soa(ResponseCode::NXDomain, zone_labels)
    }

    fn outside(&self) -> Local {
        if self.outward {
            Local::Forward
        } else {
            Local::Answer(self.unknown(0))
        }
    }

    /// RFC 2308 §3: the SOA's own TTL and its minimum say how long the absence may be remembered.
    fn with_soa(&self, code: ResponseCode, zone_labels: u8) -> Response {
        let mut response = self.response(code);
        let apex = self.question.name().trim_to(usize::from(zone_labels));
        let ns = Name::from_ascii("ns.meshd.").unwrap_or_else(|_| Name::root());
        let mail = Name::from_ascii("hostmaster.meshd.").unwrap_or_else(|_| Name::root());
        let soa = SOA::new(ns, mail, self.view.serial(), 60, 60, 3600, NEGATIVE_TTL);
        response.authorities = vec![Record::from_rdata(apex, NEGATIVE_TTL, RData::SOA(soa))];
        response
    }
}
