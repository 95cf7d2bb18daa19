//! The hand-written structures of `ffi` against the C compiler and the headers of rdma-core that are installed: every size, every
//! offset. Ignored where there is no header (Debian: libibverbs-dev, librdmacm-dev), which is a failure where `cargo xtask test` has
//! seen that they are installed.

#[path = "../../../kfab/tests/common/skip.rs"]
mod skip;

use kfab_verbs::ffi;
use libtest_mimic::{Arguments, Failed, Trial};
use std::fmt::Write;
use std::mem::{offset_of, size_of};
use std::process::Command;

struct Check {
    c: String,
    rust: usize,
}

macro_rules! layout {
    ($checks:ident, size $c:literal = $rust:ty) => {
        $checks.push(Check { c: format!("sizeof({})", $c), rust: size_of::<$rust>() });
    };
    ($checks:ident, $c:literal = $rust:ty: $($field:ident),* $(,)?) => {
        $($checks.push(Check {
            c: format!("offsetof({}, {})", $c, stringify!($field)),
            rust: offset_of!($rust, $field),
        });)*
    };
}

macro_rules! constants {
    ($checks:ident, $($c:literal = $rust:ident),* $(,)?) => {
        $($checks.push(Check { c: $c.to_owned(), rust: ffi::$rust as usize });)*
    };
}

fn structures(v: &mut Vec<Check>) {
    layout!(v, size "struct ibv_device_attr" = ffi::DeviceAttr);
    layout!(v, "struct ibv_device_attr" = ffi::DeviceAttr: fw_ver, max_qp_wr, max_sge, max_cqe, max_mr, max_qp_rd_atom,
        max_qp_init_rd_atom, atomic_cap, max_srq, max_srq_wr, max_srq_sge, max_pkeys, phys_port_cnt);
    layout!(v, size "struct ibv_port_attr" = ffi::PortAttr);
    layout!(v, "struct ibv_port_attr" = ffi::PortAttr: state, active_mtu, gid_tbl_len, max_msg_sz, lid, active_speed,
        link_layer, port_cap_flags2);
    layout!(v, size "struct ibv_async_event" = ffi::AsyncEvent);
    layout!(v, "struct ibv_async_event" = ffi::AsyncEvent: element, event_type);
    layout!(v, size "struct ibv_wc" = ffi::Wc);
    layout!(v, "struct ibv_wc" = ffi::Wc: wr_id, status, opcode, vendor_err, byte_len, imm_data, qp_num, src_qp, wc_flags,
        pkey_index, slid, sl, dlid_path_bits);
    layout!(v, size "struct ibv_sge" = ffi::Sge);
    layout!(v, "struct ibv_sge" = ffi::Sge: addr, length, lkey);
    layout!(v, size "struct ibv_recv_wr" = ffi::RecvWr);
    layout!(v, "struct ibv_recv_wr" = ffi::RecvWr: wr_id, next, sg_list, num_sge);
    layout!(v, size "struct ibv_send_wr" = ffi::SendWr);
    layout!(v, "struct ibv_send_wr" = ffi::SendWr: wr_id, next, sg_list, num_sge, opcode, send_flags, imm_data);
    v.push(Check {
        c: "offsetof(struct ibv_send_wr, wr.rdma.remote_addr)".to_owned(),
        rust: offset_of!(ffi::SendWr, remote_addr),
    });
    v.push(Check {
        c: "offsetof(struct ibv_send_wr, wr.rdma.rkey)".to_owned(),
        rust: offset_of!(ffi::SendWr, rkey),
    });
    layout!(v, size "struct ibv_mr" = ffi::Mr);
    layout!(v, "struct ibv_mr" = ffi::Mr: addr, length, lkey, rkey);
    layout!(v, size "struct ibv_comp_channel" = ffi::CompChannel);
    layout!(v, "struct ibv_comp_channel" = ffi::CompChannel: fd);
    layout!(v, size "struct ibv_qp_cap" = ffi::QpCap);
    layout!(v, "struct ibv_qp_cap" = ffi::QpCap: max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data);
    layout!(v, size "struct ibv_qp_init_attr" = ffi::QpInitAttr);
    layout!(v, "struct ibv_qp_init_attr" = ffi::QpInitAttr: qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all);
    layout!(v, size "struct ibv_srq_init_attr" = ffi::SrqInitAttr);
    v.push(Check {
        c: "offsetof(struct ibv_srq_init_attr, attr.max_wr)".to_owned(),
        rust: offset_of!(ffi::SrqInitAttr, max_wr),
    });
    layout!(v, size "union ibv_gid" = ffi::Gid);
    layout!(v, size "struct ibv_ah_attr" = ffi::AhAttr);
    layout!(v, "struct ibv_ah_attr" = ffi::AhAttr: dlid, sl, src_path_bits, static_rate, is_global, port_num);
    v.push(Check {
        c: "offsetof(struct ibv_ah_attr, grh.hop_limit)".to_owned(),
        rust: offset_of!(ffi::AhAttr, hop_limit),
    });
    layout!(v, size "struct ibv_qp_attr" = ffi::QpAttr);
    layout!(v, "struct ibv_qp_attr" = ffi::QpAttr: qp_state, path_mtu, qkey, rq_psn, sq_psn, dest_qp_num, qp_access_flags, cap,
        ah_attr, alt_ah_attr, pkey_index, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt,
        rnr_retry, rate_limit);
}

/// Of `rdma/rdma_cma.h`.
fn manager(v: &mut Vec<Check>) {
    layout!(v, "struct rdma_event_channel" = ffi::EventChannel: fd);
    layout!(v, "struct rdma_cm_id" = ffi::CmId: verbs, channel, context, qp, route, ps, port_num);
    layout!(v, size "struct rdma_conn_param" = ffi::ConnParam);
    layout!(v, "struct rdma_conn_param" = ffi::ConnParam: private_data, private_data_len, responder_resources, initiator_depth,
        flow_control, retry_count, rnr_retry_count, srq, qp_num);
    layout!(v, "struct rdma_cm_event" = ffi::CmEvent: id, listen_id, event, status);
    v.push(Check {
        c: "offsetof(struct rdma_cm_event, param.conn)".to_owned(),
        rust: offset_of!(ffi::CmEvent, conn),
    });
    constants!(
        v,
        "RDMA_PS_TCP" = PS_TCP,
        "RDMA_CM_EVENT_ADDR_RESOLVED" = CM_ADDR_RESOLVED,
        "RDMA_CM_EVENT_ADDR_ERROR" = CM_ADDR_ERROR,
        "RDMA_CM_EVENT_ROUTE_RESOLVED" = CM_ROUTE_RESOLVED,
        "RDMA_CM_EVENT_ROUTE_ERROR" = CM_ROUTE_ERROR,
        "RDMA_CM_EVENT_CONNECT_REQUEST" = CM_CONNECT_REQUEST,
        "RDMA_CM_EVENT_CONNECT_RESPONSE" = CM_CONNECT_RESPONSE,
        "RDMA_CM_EVENT_CONNECT_ERROR" = CM_CONNECT_ERROR,
        "RDMA_CM_EVENT_UNREACHABLE" = CM_UNREACHABLE,
        "RDMA_CM_EVENT_REJECTED" = CM_REJECTED,
        "RDMA_CM_EVENT_ESTABLISHED" = CM_ESTABLISHED,
        "RDMA_CM_EVENT_DISCONNECTED" = CM_DISCONNECTED,
        "RDMA_CM_EVENT_DEVICE_REMOVAL" = CM_DEVICE_REMOVAL
    );
}

fn parts(v: &mut Vec<Check>) {
    layout!(v, "struct ibv_context" = ffi::Context: device, ops, cmd_fd, async_fd);
    layout!(v, "struct ibv_context_ops" = ffi::Ops: poll_cq, req_notify_cq, post_srq_recv, post_send);
    layout!(v, size "struct ibv_context_ops" = ffi::Ops);
    layout!(v, "struct ibv_cq" = ffi::Cq: context);
    layout!(v, "struct ibv_srq" = ffi::Srq: context);
    layout!(v, "struct ibv_qp" = ffi::Qp: context, pd, send_cq, recv_cq, srq, handle, qp_num);
    constants!(
        v,
        "IBV_PORT_ACTIVE" = PORT_ACTIVE,
        "IBV_QPT_RC" = QPT_RC,
        "IBV_QPS_INIT" = QPS_INIT,
        "IBV_QPS_RTR" = QPS_RTR,
        "IBV_QPS_RTS" = QPS_RTS,
        "IBV_QPS_ERR" = QPS_ERR,
        "IBV_QP_STATE" = QP_STATE,
        "IBV_QP_ACCESS_FLAGS" = QP_ACCESS_FLAGS,
        "IBV_QP_PKEY_INDEX" = QP_PKEY_INDEX,
        "IBV_QP_PORT" = QP_PORT,
        "IBV_QP_AV" = QP_AV,
        "IBV_QP_PATH_MTU" = QP_PATH_MTU,
        "IBV_QP_TIMEOUT" = QP_TIMEOUT,
        "IBV_QP_RETRY_CNT" = QP_RETRY_CNT,
        "IBV_QP_RNR_RETRY" = QP_RNR_RETRY,
        "IBV_QP_RQ_PSN" = QP_RQ_PSN,
        "IBV_QP_MAX_QP_RD_ATOMIC" = QP_MAX_QP_RD_ATOMIC,
        "IBV_QP_MIN_RNR_TIMER" = QP_MIN_RNR_TIMER,
        "IBV_QP_SQ_PSN" = QP_SQ_PSN,
        "IBV_QP_MAX_DEST_RD_ATOMIC" = QP_MAX_DEST_RD_ATOMIC,
        "IBV_QP_DEST_QPN" = QP_DEST_QPN,
        "IBV_ACCESS_LOCAL_WRITE" = ACCESS_LOCAL_WRITE,
        "IBV_ACCESS_REMOTE_WRITE" = ACCESS_REMOTE_WRITE,
        "IBV_ACCESS_REMOTE_READ" = ACCESS_REMOTE_READ,
        "IBV_WR_RDMA_WRITE" = WR_RDMA_WRITE,
        "IBV_WR_SEND" = WR_SEND,
        "IBV_WR_RDMA_READ" = WR_RDMA_READ,
        "IBV_SEND_SIGNALED" = SEND_SIGNALED,
        "IBV_SEND_INLINE" = SEND_INLINE,
        "IBV_WC_SUCCESS" = WC_SUCCESS,
        "IBV_WC_WR_FLUSH_ERR" = WC_WR_FLUSH_ERR,
        "IBV_WC_REM_INV_REQ_ERR" = WC_REM_INV_REQ_ERR,
        "IBV_WC_REM_ACCESS_ERR" = WC_REM_ACCESS_ERR,
        "IBV_WC_REM_OP_ERR" = WC_REM_OP_ERR,
        "IBV_EVENT_CQ_ERR" = EVENT_CQ_ERR,
        "IBV_EVENT_DEVICE_FATAL" = EVENT_DEVICE_FATAL,
        "IBV_EVENT_PORT_ACTIVE" = EVENT_PORT_ACTIVE,
        "IBV_EVENT_PORT_ERR" = EVENT_PORT_ERR,
        "IBV_EVENT_LID_CHANGE" = EVENT_LID_CHANGE,
        "IBV_EVENT_SRQ_ERR" = EVENT_SRQ_ERR,
        "IBV_EVENT_GID_CHANGE" = EVENT_GID_CHANGE
    );
}

/// The numbers that the C compiler says.
fn ask_c(header: &str, checks: &[Check]) -> Vec<usize> {
    let mut source = format!("#include <{header}>\n");
    source.push_str("#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n");
    for c in checks {
        writeln!(source, "printf(\"%zu\\n\", (size_t)({}));", c.c).expect("into a String");
    }
    source.push_str("return 0; }\n");
    let dir = std::env::temp_dir().join(format!(
        "kfab-verbs-layout-{}-{}",
        std::process::id(),
        header.replace('/', "-")
    ));
    std::fs::create_dir_all(&dir).expect("a temporary folder");
    let (file, program) = (dir.join("layout.c"), dir.join("layout"));
    std::fs::write(&file, source).expect("the source is written");
    let built = Command::new("cc").arg(&file).arg("-o").arg(&program).status().expect("a C compiler");
    assert!(built.success(), "the header has not all that `ffi` has");
    let said = Command::new(&program).output().expect("the program runs").stdout;
    std::fs::remove_dir_all(&dir).expect("the folder is removed");
    String::from_utf8(said).expect("numbers").lines().map(|l| l.parse().expect("a number")).collect()
}

/// Compares with the header.
fn agree(header: &str, checks: &[Check]) -> Result<(), Failed> {
    let c = ask_c(header, checks);
    assert_eq!(c.len(), checks.len());
    let wrong: Vec<String> = checks
        .iter()
        .zip(&c)
        .filter(|(check, c)| check.rust != **c)
        .map(|(check, c)| format!("{}: {c} in C, {} here", check.c, check.rust))
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// A test that structures and constants are those of a header.
fn trial(name: &str, header: &'static str, package: &str, checks: Vec<Check>) -> Trial {
    let absent = !std::path::Path::new("/usr/include").join(header).exists();
    if absent {
        skip::skip("headers", &format!("no {header} (Debian: {package})"));
    }
    Trial::test(name, move || agree(header, &checks)).with_ignored_flag(absent)
}

fn main() {
    let (mut verbs, mut cm) = (Vec::new(), Vec::new());
    structures(&mut verbs);
    parts(&mut verbs);
    manager(&mut cm);
    let all = vec![
        trial("verbs_are_those_of_the_header", "infiniband/verbs.h", "libibverbs-dev", verbs),
        trial("the_manager_is_that_of_the_header", "rdma/rdma_cma.h", "librdmacm-dev", cm),
    ];
    libtest_mimic::run(&Arguments::from_args(), all).exit();
}
