# shellcheck shell=bash
# The peers of `scripts/bench ingress`: each passes connections to port 5000 of its host on to the same
# container behind the plain overlay, 10.200.0.12:5000, as the host's own. Sourced by ingress.sh.

# short_timeouts NS: or thousands of closed connections a second fill conntrack's table.
short_timeouts() {
    in_ns "$1" sh -c 'cd /proc/sys/net/netfilter && echo 2 >nf_conntrack_tcp_timeout_time_wait &&
        echo 2 >nf_conntrack_udp_timeout && echo 2 >nf_conntrack_udp_timeout_stream'
}

# kube_rules SERVICES: for iptables-restore, as kube-proxy writes them (pkg/proxy/iptables): a rule for each
# service's virtual address, one for each published port, and chains for each service and its backend. The
# port that is measured is in the middle.
kube_rules() {
    awk -v n="$1" 'BEGIN {
        print "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]"
        for (i = 1; i <= n; i++)
            printf ":KUBE-SVC-%d - [0:0]\n:KUBE-SEP-%d - [0:0]\n:KUBE-EXT-%d - [0:0]\n", i, i, i
        print "-A PREROUTING -j KUBE-SERVICES"
        print "-A POSTROUTING -j KUBE-POSTROUTING"
        print "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN"
        print "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000"
        # kube-proxy says --random-fully. With one client and one backend every port that it draws is in
        # TIME_WAIT at the backend, whose timestamps are another connection: a second of waiting each.
        print "-A KUBE-POSTROUTING -j MASQUERADE"
        print "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000"
        for (i = 1; i <= n; i++)
            printf "-A KUBE-SERVICES -d 10.96.%d.%d/32 -p tcp --dport 80 -j KUBE-SVC-%d\n", i / 256, i % 256, i
        print "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
        for (i = 1; i <= n; i++) {
            printf "-A KUBE-NODEPORTS -p tcp --dport %d -j KUBE-EXT-%d\n", i == int((n + 1) / 2) ? 5000 : 10000 + i, i
            printf "-A KUBE-EXT-%d -j KUBE-MARK-MASQ\n-A KUBE-EXT-%d -j KUBE-SVC-%d\n", i, i, i
            printf "-A KUBE-SVC-%d -j KUBE-SEP-%d\n-A KUBE-SEP-%d -s 10.200.0.12/32 -j KUBE-MARK-MASQ\n", i, i, i
            printf "-A KUBE-SEP-%d -p tcp -j DNAT --to-destination 10.200.0.12:5000\n", i
        }
        print "COMMIT"
    }'
}

# iptables_balancer NS SERVICES: fails if the rules are not there within two minutes.
iptables_balancer() {
    kube_rules "$2" >"$WORK/rules"
    in_ns "$1" timeout 120 iptables-restore "$WORK/rules" || return 1
    short_timeouts "$1"
}

# nft_balancer NS ADDRESS SERVICES: one map with all services; the turn is a part of the key.
nft_balancer() {
    {
        echo 'table ip balance {'
        echo ' map services { typeof tcp dport . numgen inc mod 1 : ip daddr . tcp dport; elements = { 5000 . 0 : 10.200.0.12 . 5000'
        awk -v n="$3" 'BEGIN { for (i = 1; i < n; i++) printf ", %d . 0 : 10.200.0.12 . 5000\n", 10000 + i }'
        echo '} }'
        echo " chain in { type nat hook prerouting priority dstnat; ip daddr $2 dnat ip to tcp dport . numgen inc mod 1 map @services; }"
        echo ' chain out { type nat hook postrouting priority srcnat; ct status dnat masquerade; }'
        echo '}'
    } >"$WORK/table"
    in_ns "$1" nft -f "$WORK/table"
    short_timeouts "$1"
}

# haproxy_balancer NS: a frontend of TCP, with a thread for each CPU.
haproxy_balancer() {
    cat >"$WORK/haproxy.cfg" <<'CFG'
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend in
    bind :5000
    default_backend out
backend out
    server one 10.200.0.12:5000
CFG
    in_ns "$1" setsid haproxy -db -f "$WORK/haproxy.cfg" </dev/null >/dev/null 2>&1 &
}
