//! scratch
use fnctl_scheduler::policy::*; use fnctl_scheduler::simulator::*;
use fnctl_scheduler::simulator::{generate::*, sweep::*, trace::*};
fn main(){
 let a:Vec<String>=std::env::args().collect();
 let mix=match a[1].as_str(){"azure"=>Mix::Azure,"timers"=>Mix::Timers,"half"=>Mix::Half,_=>Mix::NoTimers};
 let (f,h,inv):(u32,u32,u64)=(a[2].parse().unwrap(),a[3].parse().unwrap(),a[4].parse().unwrap());
 let seeds:Vec<u64>=a[5].split(',').map(|x|x.parse().unwrap()).collect();
 let extra:Vec<&str>=a[6..].iter().map(|s|s.as_str()).collect();
 for seed in seeds {
  let r=Recipe{seed,functions:f,hours:h,invocations:inv,mix};
  let t0=std::time::Instant::now();
  let text:String=r.lines().collect();
  let mut tr=Trace::new(seed); tr.read(text.as_bytes()).unwrap();
  println!("seed {seed}: {} inv {} fns gen {:?}",tr.invocations(),tr.functions().len(),t0.elapsed());
  let run=|spec:Spec|{ let t=std::time::Instant::now(); let o=simulate(&tr,&Settings{policy:spec,..Settings::default()}); (o,t.elapsed())};
  let show=|name:&str,o:&Outcome,t:std::time::Duration|println!("{name:40} cold {:7} prew {:6} ahead {:6} gbh {:9.1} addS {:8.1} p99 {:?} hist {}B {:?}",o.all.cold_starts,o.all.prewarmed_starts,o.all.started_ahead,o.all.idle_gb_hours(),o.all.added_seconds,o.added(0.99),o.history_bytes,t);
  let detail=|o:&Outcome|for (k,c) in &o.classes{ if c.cold_starts>20 {println!("      {:?} fns {} inv {} cold {} gbh {:.0} ahead {}",k,c.functions,c.invocations,c.cold_starts,c.idle_gb_hours(),c.started_ahead)}};
  for e in &extra { if !e.starts_with('+') { let (o,t)=run(e.parse().unwrap()); show(e,&o,t); if std::env::var_os("DETAIL").is_some(){detail(&o)}} }
  let variants:Vec<&str>=extra.iter().filter(|e|e.starts_with('+')).map(|e|&e[1..]).collect();
  if variants.is_empty(){continue}
  let (f10,_)=run("fixed:10m".parse().unwrap());
  let curve=|specs:Vec<Spec>|->Vec<Outcome>{ let n=specs.len(); let (x,y)=specs.split_at(n/2); std::thread::scope(|s|{let h=s.spawn(||x.iter().map(|s|run(*s).0).collect::<Vec<_>>()); let mut b:Vec<_>=y.iter().map(|s|run(*s).0).collect(); let mut o=h.join().unwrap(); o.append(&mut b); o})};
  let d=adaptive::Params::default();
  let fx=curve(Family::Fixed.members(&d)); let hi=curve(Family::Histogram.members(&d));
  for v in variants {
   let base=match (if v=="-"{"adaptive".to_string()}else{format!("adaptive:{v}")}).parse().unwrap(){Spec::Adaptive(p)=>p,_=>unreachable!()};
   let ad=curve(Family::Adaptive.members(&base));
   println!("== {v}");
   let cmp=|name:String,sel:&dyn Fn(Trigger,Band)->bool|{
     let p=|o:&Outcome|{let c=o.of(sel);(c.idle_gb_hours(),c.cold_starts as f64)};
     let l=|o:&Outcome|{let c=o.of(sel);(c.idle_gb_hours(),c.added_seconds)};
     let m=p(&f10); if f10.of(sel).functions==0{return}
     let (cf,ch,ca)=(Curve::of(fx.iter().map(p)),Curve::of(hi.iter().map(p)),Curve::of(ad.iter().map(p)));
     let (lf,lh,la)=(Curve::of(fx.iter().map(l)),Curve::of(hi.iter().map(l)),Curve::of(ad.iter().map(l)));
     let _=&lf;
     let at=|c:&Curve|c.at(m.0).unwrap_or(f64::NAN);
     println!("{name:22} fns {:4} mem {:8.1} fixed10m {:7.0} fix* {:7.0} hist {:7.0} ad {:7.0} | hist/fix {:.3} ad/hist {:.3} ad/fix {:.3} | lat ad/hist {:.3}",f10.of(sel).functions,m.0,m.1,at(&cf),at(&ch),at(&ca),at(&ch)/m.1,at(&ca)/at(&ch),at(&ca)/m.1,at(&la)/at(&lh));
   };
   cmp("all".into(),&|_,_|true);
   for b in Band::ALL{cmp(format!("band {}",b.as_str()),&move|_,x|x==b);}
   for t in Trigger::ALL{cmp(format!("trigger {}",t.as_str()),&move|x,_|x==t);}
  }
 }
}
