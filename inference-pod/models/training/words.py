"""The words that generated text is filled with, and the split that keeps some of them for the evaluation.

A word is held out when a checksum of it says so and no template uses it. Held-out words never occur in training data;
the evaluation fills its entities and values with nothing else. Closed classes (weekdays, months, colours, units, digits)
are in both.
"""

import functools
import re
import zlib

THINGS = """kettle printer lamp pump scanner drill mixer fan heater camera speaker radio clock tractor ladder freezer oven grill
mower saw hammer wrench screw bolt nail hinge handle lever button switch cable plug socket battery charger filter valve pipe hose tap
sink basin bucket barrel crate box drawer shelf cabinet cupboard locker desk chair table bench sofa bed pillow blanket curtain carpet
mirror frame window door gate fence wall roof floor stair lift ramp bridge tunnel tower chimney engine motor wheel tyre brake pedal
saddle bicycle scooter van truck wagon boat canoe raft sail anchor rope chain hook net tent stove lantern candle torch match knife fork
spoon plate bowl cup mug jug bottle jar tin lid pan pot tray basket bag sack parcel letter stamp envelope folder binder notebook pen
pencil brush ruler eraser scissors stapler keyboard mouse monitor screen projector router modem server disk tablet phone headset
microphone microwave dishwasher dryer washer iron vacuum broom mop sponge towel soap brick tile plank beam panel sheet coil spring gear
belt shaft bearing gasket seal washer nut rivet key lock safe alarm sensor gauge meter scale thermometer compass telescope lens prism
magnet turbine generator boiler furnace compressor conveyor crane forklift trolley cart wheelchair stretcher bandage syringe mask glove
helmet vest jacket coat scarf boot sandal umbrella backpack suitcase wallet badge ticket poster banner flag drum flute violin piano
guitar trumpet puzzle doll kite ball racket puck sled ski skate statue painting vase sketch map globe atlas calendar diary ledger
invoice receipt contract permit passport form report memo manual guide recipe menu token bucket cache queue index shard replica cluster
node gateway proxy""".split()

NOUNS = """accident account address advice agreement air alert amount answer apartment appeal apple area arrival article attempt
audience autumn award bakery balance band bank bath beach bill bird birth blood board body book border bottom branch bread breakfast
breath budget building business butter cake call camp candidate capital card care case cash castle cause ceiling chance change chapter
charge chart child choice church circle citizen claim class cliff climate cloud club coach coast coffee collection college colour
column comfort committee community company concert condition contact content copy corner cost country course court cover cream credit
crew crop crowd culture current customer damage dance danger data day deal debt decision delay demand design detail device diet dinner
direction discovery distance doctor document dream dress drink driver duty earth economy edge education effect effort egg employee
energy entrance error evening event evidence example exercise expert eye factory failure family farm fashion father fault feature fee
field figure file film fire fish flight flood flower fog food foot forest fruit fuel garden gas gift glass goal gold grain grass group
guest guide hair hall hand harbour harvest heat height hill history hole holiday home honey hospital hotel hour house ice idea illness
image income industry injury insect insurance interest island issue item job journey juice kitchen lake land language law leaf league
lesson level library licence light limit line list load loan loss lunch machine mail market meal measure meat medal medicine meeting
member message metal method midnight milk mill mine minute mistake model moment money month moon morning mountain mouth museum music
name nature neighbour nest network news night noise north note nurse object ocean office oil opinion orange order owner oxygen page
paint paper parent park part partner party passenger path patient pattern payment peak people period pilot place plan planet plant
player poem point police pool port position powder prize problem process product profit project promise proof protein public quality
quarter question rain range rate reason record region repair request research reserve rest result rice river road rock roof root route
rule sale salt sample sand school science season seat section seed service shadow shape shelter shift ship shop shore signal silver
site skill skin sky sleep smoke snow soil soldier song sound soup source space speech spring staff stage standard star state station
steam step stone storm story stream street strike student study sugar summer supply support surface system tax teacher team tea test
text theatre theory thread threat throat title tool tooth tour town track trade traffic trail train training travel treatment tree
trial trip truth type uncle union unit update user valley value vehicle version victim view village virus visit visitor voice volume
vote wage war waste water wave weather week weight wheat wind wine winter wood word work worker world yard year zone""".split()

ATTRIBUTES = """address age altitude angle area author authority average balance bandwidth barcode brand budget builder category
centre certificate class climate code coating colour composer contact content contractor cost count country curator currency deadline
deductible density deposit depth designer diameter director distance duration editor efficiency engine exit expiry factor fee finish
flavour format frequency fuel gender genre goal grade guardian guide habitat height host humidity identifier illustrator income
inspector insurer interest label language latency layout length level limit load location manager manual margin mascot mass material
maximum memory method minimum mission mode model motto name number operator orbit origin output owner password penalty phase
photographer pilot pitch plan planner playlist policy population position postcode premium pressure price priority producer profile
profit publisher purpose quality quantity quota range rank rate rating reach recipe region registration rent reserve resolution
responsible revision reward rhythm role route salary sample scale schedule score season secretary section sequence shape shift
signal size source specialist species standard status strength style subject supplier surface surname symbol target tariff tax
teacher temperature tenant term texture theme thickness threshold timeout title tolerance topic trainer translator treatment tutor
type unit validity value vendor version visibility voltage volume wage width wind winner yield zone""".split()

ADJECTIVES = """old new small large big tiny huge heavy light long short high low wide narrow thick thin deep flat round square
sharp blunt soft hard smooth rough wet dry clean dirty warm cold hot cool fresh stale sweet sour bitter salty loud quiet bright dark pale
rich poor cheap costly rare common early late quick slow safe risky strong weak young ancient modern local foreign public private open
secret simple complex plain fancy empty full broken spare main second third last north south east west upper lower left right front
rear inner outer wooden metal plastic electric digital manual mobile portable folding hidden famous popular busy calm gentle wild tame
happy sad proud brave lazy clever honest polite rude curious eager annual weekly daily seasonal temporary permanent official special
central dynamic static shared global remote virtual automatic flexible stable""".split()

# base, past, third person, -ing
VERBS = [tuple(line.split()) for line in """repair repaired repairs repairing|paint painted paints painting|clean cleaned cleans cleaning
open opened opens opening|close closed closes closing|move moved moves moving|carry carried carries carrying|lift lifted lifts lifting
push pushed pushes pushing|pull pulled pulls pulling|press pressed presses pressing|turn turned turns turning|hold held holds holding
drop dropped drops dropping|throw threw throws throwing|catch caught catches catching|find found finds finding|lose lost loses losing
hide hid hides hiding|buy bought buys buying|sell sold sells selling|order ordered orders ordering|send sent sends sending
deliver delivered delivers delivering|collect collected collects collecting|bring brought brings bringing|take took takes taking
give gave gives giving|lend lent lends lending|borrow borrowed borrows borrowing|return returned returns returning|keep kept keeps keeping
store stored stores storing|count counted counts counting|measure measured measures measuring|check checked checks checking
test tested tests testing|inspect inspected inspects inspecting|replace replaced replaces replacing|remove removed removes removing
install installed installs installing|connect connected connects connecting|build built builds building|design designed designs designing
draw drew draws drawing|write wrote writes writing|read read reads reading|copy copied copies copying|print printed prints printing
sign signed signs signing|film filmed films filming|record recorded records recording|cook cooked cooks cooking|bake baked bakes baking
cut cut cuts cutting|wash washed washes washing|dry dried dries drying|heat heated heats heating|cool cooled cools cooling
fill filled fills filling|empty emptied empties emptying|pack packed packs packing|wrap wrapped wraps wrapping|label labelled labels labelling
sort sorted sorts sorting|stack stacked stacks stacking|guard guarded guards guarding|protect protected protects protecting
watch watched watches watching|follow followed follows following|visit visited visits visiting|rent rented rents renting
choose chose chooses choosing|plan planned plans planning|start started starts starting|stop stopped stops stopping
lock locked locks locking|unlock unlocked unlocks unlocking|share shared shares sharing|save saved saves saving|delete deleted deletes deleting
restore restored restores restoring|update updated updates updating|report reported reports reporting|register registered registers registering
cancel cancelled cancels cancelling|confirm confirmed confirms confirming|approve approved approves approving|reject rejected rejects rejecting
support supported supports supporting|train trained trains training|teach taught teaches teaching|help helped helps helping
examine examined examines examining|discover discovered discovers discovering|reduce reduced reduces reducing|improve improved improves improving
manage managed manages managing|monitor monitored monitors monitoring|route routed routes routing|select selected selects selecting
deploy deployed deploys deploying|balance balanced balances balancing|schedule scheduled schedules scheduling|track tracked tracks tracking
combine combined combines combining|compare compared compares comparing|convert converted converts converting|adjust adjusted adjusts adjusting
polish polished polishes polishing|feed fed feeds feeding|plant planted plants planting|harvest harvested harvests harvesting
rescue rescued rescues rescuing|treat treated treats treating|greet greeted greets greeting|invite invited invites inviting""".replace("|", "\n").split("\n")]

FIRST_NAMES = """Anna Ben Carla David Emma Felix Greta Hugo Ines Jonas Kira Leo Mia Noah Olga Paul Rosa Sam Tina Uwe Vera Will Zoe Amir
Bao Chen Dina Elif Farid Gita Hana Ivan Jin Kofi Lena Mateo Nia Omar Priya Quinn Ravi Sara Tariq Uma Viktor Wanda Yusuf Alice Brian
Clara Daniel Ella Frank Grace Henry Irene Jack Karen Louis Maria Nora Oscar Peter Ruth Simon Thea Ursula Victor Walter Martha Nina
Oliver Petra Robert Susan Thomas Julia Laura Marco Lucas Helen George Edith Bruno Agnes Ahmed Fatima Ingrid Lars Sven Astrid Pablo
Carmen Diego Elena Rafael Sofia Yara Kenji Yuki Mei Tomas Milan Zara""".split()

JOBS = """nurse baker pilot farmer teacher lawyer plumber driver cook gardener painter tailor sailor carpenter mechanic chemist
dentist clerk judge librarian miner butcher barber singer dancer actor writer editor printer guard porter waiter cashier engineer
architect surgeon tutor coach referee fisherman shepherd blacksmith potter weaver welder roofer electrician technician programmer
analyst translator journalist photographer botanist historian geologist florist optician""".split()

ANIMALS = """otter badger heron falcon beetle lizard turtle salmon eagle owl fox wolf bear deer moose hare rabbit mole bat mouse
squirrel beaver raven crow swan goose duck pelican penguin seal whale dolphin shark trout eel crab lobster snail spider ant bee wasp
moth frog toad newt snake gecko camel goat sheep donkey pony zebra lion tiger lynx panda koala lemur monkey gorilla parrot finch
sparrow swallow stork crane hedgehog weasel""".split()

PLANTS = """oak elm birch maple pine cedar willow poplar fern moss ivy rose tulip lily daisy orchid violet iris poppy lavender mint
basil thyme sage parsley tomato pepper pumpkin melon cactus bamboo clover nettle thistle heather jasmine peony lotus olive fig cherry
plum pear apple lemon vine""".split()

FOODS = """bread cheese butter honey rice beans lentils soup stew salad pasta noodles potatoes carrots onions garlic spinach cabbage
mushrooms tomatoes peppers apples pears cherries plums grapes berries nuts almonds raisins oats barley eggs milk cream yoghurt fish
shrimp chicken beef lamb ham sausages pancakes waffles dumplings pies cookies biscuits chocolate vanilla cinnamon ginger pepper salt
sugar syrup jam mustard vinegar worms seeds leaves roots insects grass bark fruit""".split()

MATERIALS = """steel copper brass bronze iron tin lead silver gold glass stone marble granite clay brick concrete wood oak bamboo
cork paper card leather wool cotton linen silk nylon rubber plastic wax resin carbon aluminium titanium ceramic felt canvas""".split()

ROOMS = """kitchen cellar attic garage hall lobby library laboratory workshop office pantry bathroom nursery studio chapel stable
barn shed greenhouse garden courtyard balcony terrace corridor staircase entrance reception canteen cafeteria gym pool sauna theatre
gallery archive storeroom warehouse depot harbour station market square park playground bakery pharmacy clinic ward surgery school
museum bank hotel bridge tower mill church town hall ticket office cloakroom lounge classroom boathouse""".replace("town hall ticket office", "").split()

PLACES = """museum library hotel clinic hospital school theatre bakery pharmacy market pool gym garden park zoo aquarium gallery
castle tower chapel cathedral station airport harbour bank office canteen cafe restaurant bar shop store workshop studio laboratory
archive cinema stadium hall arena lounge ward laundry playground campsite hostel farm mill brewery factory warehouse depot garage
observatory planetarium""".split()

EVENTS = """meeting concert lecture workshop seminar course class tour party festival fair match race rehearsal exam interview
training auction exhibition ceremony dinner breakfast conference briefing walk excursion debate contest parade show screening
inspection visit reading lesson game review retreat webinar audit drill""".split()

SPORTS = """tennis chess football hockey golf rugby cricket darts cards piano guitar drums violin flute badminton volleyball
basketball billiards draughts bowls squash handball""".split()

ILLNESSES = """fever headache cough nausea dizziness toothache hiccups migraine rash cramps heartburn insomnia asthma measles
sunburn backache earache thirst tiredness swelling itching infection inflammation""".split()

SUBJECTS = """history physics chemistry biology geology botany medicine law economics music drama philosophy mathematics
linguistics astronomy geography architecture engineering nursing theology""".split()

LANGUAGES = """Rust Python Java Ruby Scala Haskell Perl Kotlin Swift Erlang Fortran Cobol Lisp Prolog Pascal Julia Elixir Dart""".split()

GROUPS = """visitors guests students patients members customers children parents employees drivers residents tenants passengers
teachers nurses cyclists dogs volunteers players tourists farmers hikers swimmers readers contractors developers users operators
managers trainees pensioners campers""".split()

MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
COLOURS = "red blue green yellow black white grey brown purple pink orange silver golden turquoise".split()

ONSETS = "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr kl kr pl pr sh sk sl sm sn sp st str sw th tr tw qu".split()
VOWELS = "a e i o u a e i o u a e i o ai ea ee ia oo ou".split()
CODAS = "b d g k l m n p r s t v x z ck ld lm ln lt mp nd ng nk nt rd rk rm rn rt sk st th".split()

# Words of manuals and reports, from several trades. They are cut into many rare tokens, which is why they are here.
TECHNICAL = """abrasion absorption accelerator access actuator adapter admission aerosol aggregate alignment allocation allowance alloy
amplifier amplitude analytics annealing annotation antenna appendix approximation aquifer arbitration archive array assembly assertion
attenuation auditing authentication automation auxiliary axle backlog backup ballast bandgap barometer baseline benchmark binder biopsy
bitrate bitumen blueprint boundary breaker brokerage browser buffer bytecode calibration capacitor cardiology catalyst cathode census
certification channel checkpoint checksum chromatography circuit clearance coagulation collateral commissioning compiler compliance
compression concurrency condenser conductivity configuration congestion connector consensus consignment consistency console
consolidation constraint container contamination controller convection conversion coolant coordination corrosion counter coupling
coverage credential crystallisation currency cursor cylinder dashboard debugging decoder decompression default defragmentation
deformation dehydration delegation dependency depreciation desalination detection diagnosis diaphragm dielectric diffusion directory
disinfection dispatcher displacement dividend documentation domain drainage durability elasticity electrode electrolyte emission
encoder encryption endpoint endurance enumeration enzyme equaliser equilibrium erosion escalation ethernet evaporation excavation
exemption exposure expression extraction extrusion fabrication fairness fermentation fertiliser fibre filtration firmware fixture
flange fluctuation forecast formatting foundation fragment framework friction functionality galvanisation geometry governance gradient
granularity habituation handover handshake hardening hardware harmonics hydraulics hypothesis ignition immunology impedance
implementation incentive incubation indexing inductance inertia inflation infrastructure ingestion inhibitor initialisation injector
instrumentation insulation integration integrity interface interference interpreter interval intervention inventory ionisation
irrigation isolation iteration jurisdiction kernel keyword laminate landfill latch lattice leakage ledger legislation lifecycle
ligament liquidity lithography localisation logistics loopback lubrication maintenance malfunction manifold manufacturing mapping
marshalling measurement mechanism membrane metabolism microscope migration mitigation moderation modulation module moisture momentum
mortgage multiplexer namespace navigation negotiation nitrogen normalisation notification nozzle numerics obligation observability
occupancy offset optics orchestra ordinance oscillator outage outlier overhead oxidation packet pagination parameter parity partition
pathology payload peripheral permeability persistence pigment pipeline piston pivot planner plasma pneumatics polarity polymer portability
potentiometer precision prediction prefetch preservation pressure primer probability procedure procurement profiler propagation
propulsion prosthesis protocol provenance provisioning proximity pruning quarantine query quota radiation ratchet reactor rebate
receptor reconciliation recovery redundancy refinery reflection refraction refrigerant registry regression regulation rehearsal
reinforcement relay remediation renewal replication requirement resilience resistance resonance respiration retention retrofit
revocation rheology rigidity rollback rotation rotor routine runtime safeguard salinity sanitation saturation scaffold schema scheduler
scripting sedation sediment segmentation semaphore sequencing serialisation settlement shielding simulation sintering snapshot
solenoid solvent spectrum stability staging statistics sterilisation stiffness stimulus storage subnet subscription subsidy substrate
surcharge surveillance suspension synchronisation synthesis syntax tariff telemetry template tenancy tension terminal throttle
throughput timestamp titration tokeniser tolerance topology torque traceability transaction transducer transfusion transistor
transmission transparency transponder triage tributary turbidity turbulence typography ultrasound underwriting upload utility
vaccination validation vaporisation variance varnish velocity ventilation verification vibration viscosity visualisation voltage
warehouse warranty watchdog waveform wavelength webhook weighting welding wiring workflow workload workspace yield""".split()

QUALITIES = """adaptive additive adjacent adjustable aggregated ambient annual anonymous approximate asynchronous audible automated autonomous
auxiliary balanced bilateral biodegradable brittle centralised certified chemical clinical coarse combined compatible compressed
concurrent conditional configurable conservative consistent corrosive cumulative decentralised declarative deterministic diagnostic
differential directional disposable distributed domestic dormant durable elastic embedded empirical encrypted ergonomic experimental
explicit exponential external federated financial flammable fluorescent functional geothermal gradual granular heterogeneous
hierarchical horizontal hybrid hydraulic idempotent immutable implicit incremental independent industrial inert infrared integrated
interactive intermittent internal interoperable inverse isolated lateral latent lightweight linear liquid logical longitudinal lossless
magnetic malleable mandatory marginal maximal measurable mechanical mechanised medical modular molecular monthly multilingual mutable
nested neural nocturnal nominal numerical obsolete operational optical optional organic orthogonal parallel partial passive periodic
pneumatic polar porous predictive preventive primary probabilistic procedural programmable proportional protective provisional
quantitative radial random reactive recursive redundant refundable regional relational reliable renewable replicated residual resilient
reusable reversible rigid robust rotating saturated seasonal secondary sequential serial soluble spatial speculative spectral stateful
stateless statistical sterile stochastic strategic structural subordinate supervised surgical sustainable symmetric synthetic
systematic tangible tertiary thermal toxic transient transparent turbulent ultrasonic uniform unilateral vertical viscous visual
volatile voluntary waterproof weighted wireless""".split()

PREFIXES = "anti auto bio co counter cross de di electro extra geo hydro hyper in inter iso macro meta micro mis mono multi nano neuro non out over para photo poly pre proto pseudo re semi sub super syn tele thermo trans tri ultra un under uni".split()
STEMS = """act ban calc cap cel cent cess chron cid clin cod cord crit cur dat dens dict doc dox duct fac fer fid fin flex flict flu form
fract fus gen ger gest gram graph grav hab hal ject junct lat lect liber lim lin loc log lum mand mar matr med mem ment merg min miss
mit mod mot mut nect neg nom norm nul ord pact pan par path pend phas plex plic pon port pos press prim prob pul punct quant quer ral
rect reg rig riv rod rog sal sat scal sci scrib sect sens sequ serv sign sim sist sol son spec spir stat struct sum tact tain tang tect
temp ten term tex tim tom ton tort tract trib trop turb val var vect ven ver vers vid vis voc vol volt""".split()
SUFFIXES = "able al ance ant ary ate ated ates ating ation ations ator ators ed ence ency ent er ers ic ical ics ification ified ing ion ions isation ise ised ism ist ition itive ity ive ized izing less ly ment ments ness or ous s tion ture ular ure us".split()

LISTS = {
    "technical": TECHNICAL, "quality": QUALITIES, "thing": THINGS, "noun": NOUNS, "attribute": ATTRIBUTES, "adjective": ADJECTIVES, "first_name": FIRST_NAMES, "job": JOBS,
    "animal": ANIMALS, "plant": PLANTS, "food": FOODS, "material": MATERIALS, "room": ROOMS, "place": PLACES, "event": EVENTS,
    "sport": SPORTS, "illness": ILLNESSES, "subject": SUBJECTS, "language": LANGUAGES, "group": GROUPS,
}


# Lists that may be exchanged for made-up words: those whose words stand for things and qualities, not for a closed class.
INVENTED = frozenset(("technical", "quality", "thing", "noun", "attribute", "adjective", "job", "animal", "plant", "food", "material", "event"))


def words_of(text):
    return re.findall(r"[a-z]+", text.lower())


def is_held_out(word):
    """Whether the checksum keeps `word` for the evaluation: one word in eight. A plural goes with its singular."""
    return zlib.crc32(("fairlead " + word.lower().rstrip("s")).encode()) % 8 == 0


@functools.cache
def template_words():
    """Every word that a template says itself; such words occur in training whatever their checksum."""
    import templates

    return frozenset(templates.all_words()) | frozenset(w for w in words_of(" ".join(MONTHS + WEEKDAYS + COLOURS)))


@functools.cache
def asked_only_in_evaluation():
    """Words of the held-out relations. Training neither draws them from a list nor makes a relation of them."""
    import templates

    held = templates.relations("relations_held_out.txt")
    return frozenset(words_of(" ".join(text for relation in held for text in (relation.name, *relation.statements, *relation.questions))))


@functools.cache
def _following():
    """For every two letters, what comes next in the words of the lists; the empty string is the end."""
    table = {}
    for word in sorted({word.lower() for words in LISTS.values() for word in words}):
        padded = "  " + word
        for i in range(len(word) + 1):
            table.setdefault(padded[i : i + 2], []).append(padded[i + 2 : i + 3])
    return table


def _letter_by_letter(rng):
    table, text = _following(), "  "
    while len(text) < 20:
        letter = rng.choice(table[text[-2:]])
        if not letter:
            break
        text += letter
    return text.strip()


class Words:
    """Draws words from one side of the split. `rng` is a random.Random; the same seed draws the same words.

    `invented` is the part of the verbs, and half that of the other words, that are made up instead of drawn from the lists: whoever
    has only read known verbs cannot tell one unknown verb from another.
    """

    def __init__(self, rng, held_out=False, invented=0.0):
        self.rng, self.held_out, self.invented = rng, held_out, invented
        fixed = template_words()
        kept = lambda w: (is_held_out(w) or w.lower() in asked_only_in_evaluation()) and w.lower() not in fixed
        allow = lambda w: kept(w) == held_out
        self.lists = {name: [w for w in dict.fromkeys(words) if allow(w)] for name, words in LISTS.items()}
        self.verbs = [v for v in VERBS if all(allow(form) for form in v)] if not held_out else [v for v in VERBS if allow(v[0])]
        everything = dict.fromkeys(sum((LISTS[n] for n in LISTS if n not in ("first_name", "language", "technical", "quality")), []))
        self.lists["any"] = [w for w in everything if allow(w)]

    def pick(self, name):
        if self.invented and name in INVENTED and self.rng.random() < self.invented / 2:
            return self.pseudo() if self.rng.random() < 0.5 else self.coined()
        # A short list may have nothing on one side of the split.
        return self.rng.choice(self.lists[name]) if self.lists[name] else self.pseudo()

    def verb(self):
        """Base, past, third person, -ing."""
        if self.invented and self.rng.random() < self.invented:
            base = self.pseudo() if self.rng.random() < 0.5 else self.coined()
            stem = base.rstrip("aeious") or base
            forms = stem + self.rng.choice(("", "e")), stem + "ed", stem + "s", stem + "ing"
            if all(map(self.may_say, forms)):
                return forms
        return self.rng.choice(self.verbs)

    def pseudo(self, syllables=None):
        """A word that does not exist, in lower case."""
        rng = self.rng
        while True:
            word = ""
            for _ in range(syllables or rng.choice((1, 2, 2, 2, 3))):
                word += rng.choice(ONSETS) + rng.choice(VOWELS)
            if rng.random() < 0.6:
                word += rng.choice(CODAS)
            if len(word) > 3 and is_held_out(word) == self.held_out and word not in template_words():
                return word

    def may_say(self, word):
        """Whether a word that came about by chance is none that training must not say."""
        return self.held_out or not is_held_out(word) or word.lower() in template_words()

    def coined(self):
        """A word that looks learned or foreign, and hardly exists: of stems, or letter by letter as real words go on."""
        rng = self.rng
        while True:
            if rng.random() < 0.5:
                word = (rng.choice(PREFIXES) if rng.random() < 0.5 else "") + rng.choice(STEMS)
                word += (rng.choice(STEMS) if rng.random() < 0.3 else "") + rng.choice(SUFFIXES) + (rng.choice(SUFFIXES) if rng.random() < 0.25 else "")
            else:
                word = _letter_by_letter(rng)
            if 3 < len(word) < 18 and is_held_out(word) == self.held_out and word not in template_words():
                return word

    def name(self):
        """A pseudo-word as a proper name."""
        return self.pseudo().capitalize()

    def word(self):
        """A plain word: mostly a real one."""
        return self.pseudo() if self.rng.random() < 0.2 else self.pick("any")
