/** qubes.xml as the genuine samples have it: labels, pools, and a domain for every qube. */
import type { Qube, Settings } from "./state.ts";

const labels = [
  ["0xcc0000", "red"],
  ["0xf57900", "orange"],
  ["0xedd400", "yellow"],
  ["0x73d216", "green"],
  ["0x555555", "gray"],
  ["0x3465a4", "blue"],
  ["0x75507b", "purple"],
  ["0x000000", "black"],
];

const escaped = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");

const property = (name: string, value: string | number): string =>
  `        <property name="${name}">${escaped(String(value))}</property>`;

const features = (path: string | undefined, size: number): Array<string> => [
  "      <features>",
  `        <feature name="backup-content">${path === undefined ? "" : "1"}</feature>`,
  ...(path === undefined
    ? []
    : [
        `        <feature name="backup-path">${escaped(path)}</feature>`,
        `        <feature name="backup-size">${size}</feature>`,
      ]),
  "      </features>",
];

const volumes = (qube: Qube, template: Qube | undefined): Array<string> => {
  const directory = (of: Qube) =>
    `${of.class === "TemplateVM" ? "vm-templates" : "appvms"}/${escaped(of.name)}`;
  const volume = (name: string, kept: boolean, size: number, source?: string) =>
    `        <volume name="${name}" pool="varlib" vid="${directory(qube)}/${name}"` +
    ` revisions_to_keep="2" rw="True" save_on_stop="${kept ? "True" : "False"}"` +
    ` snap_on_start="${source === undefined ? "False" : "True"}" size="${size}"` +
    `${source === undefined ? "" : ` source="${source}"`}/>`;
  const root = qube.volumes["root"];
  const rootSize = (root ?? template?.volumes["root"])?.size ?? 4194304;
  const source = template === undefined ? undefined : `${directory(template)}/root`;
  return [
    volume("root", root !== undefined, rootSize, root === undefined ? source : undefined),
    volume("private", true, qube.volumes["private"]?.size ?? 4194304),
    volume("volatile", false, 10737418240),
    '        <volume name="kernel" pool="linux-kernel" vid="6.6-test" revisions_to_keep="0"' +
      ' rw="False" save_on_stop="False" snap_on_start="False"/>',
  ];
};

/** `sizes`: by qube id, of those that are in the backup. */
export const qubesXml = (
  settings: Settings,
  qubes: ReadonlyArray<Qube>,
  sizes: ReadonlyMap<number, number>,
): string => {
  const byName = qubes.filter((qube) => qube.qid !== 0).sort((a, b) => (a.name < b.name ? -1 : 1));
  const dom0Size = sizes.get(0);
  const home = dom0Size === undefined ? undefined : `dom0-home/${settings.dom0User}`;
  const lines = [
    "<qubes>",
    "  <labels>",
    ...labels.map(
      ([color, name], index) =>
        `    <label id="label-${index + 1}" color="${color}">${name}</label>`,
    ),
    "  </labels>",
    "  <pools>",
    '    <pool name="varlibqubes" dir_path="/var/lib/qubes" driver="file" revisions_to_keep="1" ephemeral_volatile="False"/>',
    '    <pool name="linux-kernel" dir_path="/var/lib/qubes/vm-kernels" driver="linux-kernel"/>',
    '    <pool name="varlib" dir_path="/var/lib/qubes" driver="file-reflink" revisions_to_keep="2" ephemeral_volatile="False"/>',
    "  </pools>",
    "  <properties>",
    '    <property name="default_kernel">6.6-test</property>',
    '    <property name="default_pool">varlib</property>',
    '    <property name="default_pool_kernel">linux-kernel</property>',
    '    <property name="default_pool_private">varlib</property>',
    '    <property name="default_pool_root">varlib</property>',
    '    <property name="default_pool_volatile">varlib</property>',
    "  </properties>",
    "  <domains>",
    '    <domain id="domain-0" class="AdminVM">',
    "      <properties>",
    property("label", "black"),
    "      </properties>",
    ...features(home, dom0Size ?? 0),
    "      <tags/>",
    "    </domain>",
  ];
  for (const qube of byName) {
    const size = sizes.get(qube.qid);
    const template = qubes.find(({ name }) => name === qube.template);
    lines.push(
      `    <domain id="domain-${qube.qid}" class="${qube.class}">`,
      "      <properties>",
      property("include_in_backups", qube.include_in_backups ? "True" : "False"),
      property("label", qube.label),
      property("name", qube.name),
      property("qid", qube.qid),
      property("uuid", qube.uuid),
      ...(qube.template === null ? [] : [property("template", qube.template)]),
      // What is at its default is not written; None is an empty text.
      ...(qube.netvm === undefined ? [] : [property("netvm", qube.netvm ?? "")]),
      ...(qube.provides_network === true ? [property("provides_network", "True")] : []),
      "      </properties>",
      ...features(size === undefined ? undefined : `vm${qube.qid}/`, size ?? 0),
      "      <tags>",
      ...[...qube.tags].sort().map((tag) => `        <tag name="${escaped(tag)}"/>`),
      "      </tags>",
      "      <volume-config>",
      ...volumes(qube, template),
      "      </volume-config>",
      "    </domain>",
    );
  }
  return [...lines, "  </domains>", "</qubes>", ""].join("\n");
};
